"""A vanilla model in the formats of transformers and of this program, and tasks to evaluate both on."""

import json
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_prep.run import prepare
from megatron_ext.ponder.config import Method
from pipeline.conversion.from_hf import ImportOptions, from_hf
from pipeline.conversion.hf_weights import SAFETENSORS_NAME
from pipeline.conversion.to_hf import ExportOptions, to_hf
from tests.bench.conversion import NeoxSizes, make_model
from tests.support.corpus import WORDS, build_request, write_corpus
from tests.support.harness_tasks import write_tasks

EOD = "<|endoftext|>"
VOCAB_SIZE = 300
SEQ_LENGTH = 48
_SIZES = NeoxSizes(num_layers=2, hidden_size=32, num_heads=2, ffn_size=64, vocab_size=VOCAB_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskModels:
    """The folders of models and tasks.

    Attributes:
        vanilla: a checkpoint.
        exported: the same as a folder that transformers loads.
        ponderlm3: a checkpoint with the same backbone that takes two steps per token.
        tasks: folder of task files.
    """

    vanilla: Path
    exported: Path
    ponderlm3: Path
    tasks: Path


def write_task_models(folder: Path) -> TaskModels:
    """Write text, tokenizer, shards, models and tasks."""
    hf, data = folder / "hf", folder / "data"
    make_model(_SIZES, hf, dtype=torch.float32)
    _sharpen(hf / SAFETENSORS_NAME)
    _save_tokenizer(hf)
    source = write_corpus(folder / "text")
    prepare(build_request(source, hf / "tokenizer.json", data, eod_token=EOD))
    settings = (f"data.path={data}", f"training.seq_length={SEQ_LENGTH}", "parallel.timeout_seconds=60")
    more = ("ponder.num_latent_thoughts=2", "ponder.num_jacobi_iterations=2")
    vanilla, _ = from_hf(hf, folder / "vanilla", ImportOptions(overrides=settings))
    options = ImportOptions(method=Method.PONDERLM3, overrides=(*settings, *more))
    ponderlm3, _ = from_hf(hf, folder / "ponderlm3", options)
    to_hf(vanilla, folder / "exported", ExportOptions())
    return TaskModels(
        exported=folder / "exported",
        vanilla=vanilla,
        ponderlm3=ponderlm3,
        tasks=write_tasks(folder / "tasks"),
    )


def _sharpen(file: Path) -> None:
    """Make the model clearly prefer some tokens, so that no answer depends on rounding."""
    weights = load_file(file)
    save_file({name: 10 * value if value.dim() == 2 else value for name, value in weights.items()}, file)


def _save_tokenizer(folder: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOD, "bos_token": EOD}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
