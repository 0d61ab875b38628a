"""Tokenizers of both kinds, trained on a little of the text that is to be tokenized."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_prep.inputs.documents import TextFiles
from data_prep.tokenizers.tokenizer_training import TokenizerTraining, train_tokenizer

VOCAB_SIZE = 8_000
_SAMPLE_BYTES = 1_000_000


def train_sentencepiece(paths: Sequence[Path], output: Path) -> None:
    """Train a sentencepiece model of 8,000 pieces, as `megaponder tokenizer train` does."""
    source = TextFiles(inputs=tuple(str(path) for path in paths))
    train_tokenizer(
        TokenizerTraining(source=source, output=output, vocab_size=VOCAB_SIZE, sample_bytes=_SAMPLE_BYTES)
    )


def train_tokenizer_json(paths: Sequence[Path], output: Path, *, eod_token: str) -> None:
    """Train a byte-level BPE of 8,000 ids, as most published tokenizers are."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[eod_token],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(paths), trainer)
    tokenizer.save(str(output))


def _sample(paths: Sequence[Path]) -> Iterator[str]:
    lines = itertools.chain.from_iterable(path.open("rb") for path in paths)
    num_bytes = 0
    for line in lines:
        yield json.loads(line)["text"]
        num_bytes += len(line)
        if num_bytes > _SAMPLE_BYTES:
            return
