"""Small tasks of lm-evaluation-harness with data of their own."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

from tests.support.corpus import WORDS

TASKS = ("tiny_choice", "tiny_rolling", "tiny_generation")


def write_tasks(folder: Path) -> Path:
    """Write a multiple-choice, a rolling-perplexity and a generation task with a few questions each."""
    folder.mkdir(parents=True)
    choose = random.Random(3)

    def text(num_words: int) -> str:
        return " ".join(choose.choices(WORDS, k=num_words))

    questions = [
        {"question": text(6), "choices": [text(2), text(3), text(1)], "answer": n % 3} for n in range(7)
    ]
    # The second is longer than the model sees at once.
    texts = [{"text": text(num_words)} for num_words in (4, 90, 20)]
    prompts = [{"text": text(5), "answer": text(1)} for _ in range(5)]
    _write_task(
        folder,
        "tiny_choice",
        questions,
        output_type="multiple_choice",
        doc_to_text="{{question}} =",
        doc_to_target="{{answer}}",
        doc_to_choice="{{choices}}",
        fewshot_split="test",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    _write_task(
        folder,
        "tiny_rolling",
        texts,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )
    _write_task(
        folder,
        "tiny_generation",
        prompts,
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["e"], "max_gen_toks": 9, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    return folder


def _write_task(folder: Path, name: str, documents: list[dict[str, Any]], **settings: Any) -> None:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
