"""Text to prepare, the Python sources on this machine, and tokenizers trained on a part of it."""

import itertools
import json
import random
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_prep.inputs.documents import INSTALLED_PACKAGES, TextFiles
from data_prep.tokenizers.tokenizer_training import TokenizerTraining, train_tokenizer

MEGA = 1_000_000
# Enough files to keep all workers of one machine busy, none of them tiny.
_FILES_WANTED = 32
_SMALLEST_FILE_BYTES = MEGA // 2

VOCAB_SIZE = 8_000
_SAMPLE_BYTES = 1_000_000


def write_corpus(folder: Path, num_bytes: int) -> tuple[Path, ...]:
    """Write JSONL files with about ``num_bytes`` of text, identical on every call on the same machine.

    Args:
        folder: the folder to create.
        num_bytes: size of the text in UTF-8.
    """
    folder.mkdir(parents=True)
    limit = max(num_bytes // _FILES_WANTED, _SMALLEST_FILE_BYTES)
    paths: list[Path] = []
    remaining, room = num_bytes, 0
    lines: list[str] = []
    for text in _documents():
        if remaining <= 0:
            break
        lines.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        remaining, room = remaining - len(text.encode()), room + len(text.encode())
        if room >= limit or remaining <= 0:
            paths.append(folder / f"part-{len(paths):05d}.jsonl")
            paths[-1].write_text("".join(lines), encoding="utf-8")
            lines, room = [], 0
    return tuple(paths)


def _documents() -> Iterator[str]:
    """Yield every source once, and then modified copies without end."""
    paths = []
    for path in _sources():
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            paths.append(path)
            yield text
    for repetition in itertools.count(1):
        for number, path in enumerate(paths):
            yield _changed(path.read_text(encoding="utf-8", errors="replace"), repetition, number)


def _sources() -> Iterator[Path]:
    """Yield the sources of the standard library, and then those of installed packages."""
    places = sysconfig.get_paths()
    standard = Path(places["stdlib"])
    for path in sorted(standard.rglob("*.py")):
        if not set(INSTALLED_PACKAGES) & set(path.relative_to(standard).parts):
            yield path
    yield from sorted(Path(places["purelib"]).rglob("*.py"))


def _changed(text: str, repetition: int, number: int) -> str:
    """Return a different document of the same lines: some are dropped, and the rest is rotated."""
    chance = random.Random(f"{repetition} {number}")
    lines = [line for line in text.splitlines(keepends=True) if chance.random() > 0.05]
    first = chance.randrange(len(lines) + 1)
    return "".join([f"# copy {repetition}\n", *lines[first:], *lines[:first]])


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
