"""A model of a Hugging Face folder is evaluated, generates, initializes a run, and is exported again."""

import json
import re
from pathlib import Path

import pytest
import torch

from pipeline.data.prompts import load_tokenizer
from tests.bench.conversion import NeoxSizes, make_model
from tests.support.commands import megaponder
from tests.support.corpus import VOCAB_SIZE
from tests.support.hf_models import use_module_cache

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

SIZES = NeoxSizes(num_layers=2, hidden_size=32, num_heads=2, ffn_size=64, vocab_size=VOCAB_SIZE)


def test_a_converted_model_is_evaluated_generates_is_trained_on_and_exported(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, native = tmp_path / "source", tmp_path / "native"
    make_model(SIZES, source, dtype=torch.float16)
    data = recipe.parent / "data"
    eod_id = load_tokenizer(data).eod_id
    settings = [f"data.path={data}", "training.seq_length=64", "ponder.num_latent_thoughts=2"]
    command = megaponder(
        *("convert", "from-hf", str(source), "--output", str(native), "--no-tokenizer"),
        *("--method", "ponderlm3", *(part for text in settings for part in ("--set", text))),
    )
    assert command.exit_code == 0, command.stderr
    certificate = json.loads((native / "iter_0000000" / "conversion.json").read_text())
    assert "ponder.router.0.weight" in certificate["tensors"]["new"]
    output = tmp_path / "evaluation.json"
    command = megaponder("eval", str(native), "--iters", "2", "--output", str(output))
    assert command.exit_code == 0, command.stderr
    # The initial router puts 0.9 on step K.
    steps = json.loads(output.read_text())["steps_count"]
    assert steps[:2] == [0, 0]
    command = megaponder("generate", str(native), "--max-new-tokens", "4")
    assert command.exit_code == 0, command.stderr
    command = megaponder(
        *("train", "--config", str(native / "iter_0000000" / "run_config.yaml"), "training.train_iters=2"),
        *(f"init_from.path={native}", "init_from.method=ponderlm3", f"output_dir={tmp_path / 'run'}"),
    )
    assert command.exit_code == 0, command.stderr
    assert str(native / "iter_0000000") in command.stderr
    pytest.importorskip("transformers")
    use_module_cache(monkeypatch, tmp_path / "code")
    _export_and_generate(tmp_path / "run" / "checkpoints", tmp_path / "exported", eod_id)


def _export_and_generate(checkpoints: Path, folder: Path, eod_id: int) -> None:
    from transformers import AutoModelForCausalLM, pipeline

    command = megaponder("convert", "to-hf", str(checkpoints), "--output", str(folder))
    assert command.exit_code == 0, command.stderr
    card = (folder / "README.md").read_text()
    assert re.search(r"^\| iterations \| 2\b", card, re.MULTILINE)
    assert "AutoTokenizer" in card
    # Beside the sentencepiece model, by which transformers finds the tokenizer.
    assert (folder / "tokenizer.model").is_file()
    (continued,) = pipeline("text-generation", model=str(folder), trust_remote_code=True)(
        "def value", max_new_tokens=3, do_sample=False
    )
    assert continued["generated_text"].startswith("def value")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert model.generation_config.eos_token_id == eod_id
    output = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, return_dict_in_generate=True)
    assert output.past_key_values.steps.shape[0] == 1


def test_a_run_does_not_resume_from_a_converted_model(recipe: Path, tmp_path: Path) -> None:
    source, native = tmp_path / "source", tmp_path / "native"
    make_model(SIZES, source, dtype=torch.float16)
    command = megaponder(
        *("convert", "from-hf", str(source), "--output", str(native), "--no-tokenizer"),
        *("--set", f"data.path={recipe.parent / 'data'}", "--set", "training.seq_length=64"),
    )
    assert command.exit_code == 0, command.stderr
    command = megaponder(
        *("train", "--config", str(native / "iter_0000000" / "run_config.yaml"), "training.train_iters=2"),
        *(f"checkpoint.directory={native}", f"output_dir={tmp_path / 'run'}"),
    )
    assert command.exit_code == 93
    assert "optimizer." in command.stderr
