"""Train a sentencepiece tokenizer on a sample of limited size from a text source."""

import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from sentencepiece import SentencePieceTrainer

from data_prep.inputs.documents import InputFile, TextFiles, TextFolder, files_fingerprint
from data_prep.inputs.finding import find_files
from data_prep.inputs.ranges import full_range
from data_prep.inputs.records import BadRecord, document_name, holds_many, read_records
from data_prep.manifest import RejectedRecord
from data_prep.plan import TRAIN, name_fraction, split_of
from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from data_prep.tokenizers.tokenizer import Tokenizer
from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically

logger = logging.getLogger(__name__)

EOD_PIECE = "<|endoftext|>"
# The end-of-document and the unknown piece, and one piece per byte.
RESERVED_PIECES = 2 + 256
LONGEST_LINE_CHARACTERS = 4096


class TokenizerTraining(BaseModel):
    """What to train a tokenizer on, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: TextFolder | TextFiles
    output: Path
    vocab_size: int = Field(default=4096, gt=RESERVED_PIECES, le=1_000_000)
    model_type: Literal["bpe", "unigram"] = "bpe"
    sample_bytes: PositiveInt = 4_000_000
    heldout_fraction: float = Field(default=0.05, ge=0.0, lt=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTokenizer:
    """Result of :func:`train_tokenizer`; ``was_trained`` is False if the file was up to date."""

    path: Path
    sha256: str
    vocab_size: int
    num_files: int
    sample_bytes: int
    was_trained: bool


def train_tokenizer(training: TokenizerTraining) -> TrainedTokenizer:
    """Train the tokenizer, unless the file at ``output`` was already trained on the same text and settings.

    The same text and settings produce the same bytes. Held-out documents are never used.

    Raises:
        DataError: the sample is too small for the vocabulary, or holds no text.
    """
    sample = choose_sample(find_files(training.source), training)
    record = _training_record(training, sample)
    was_trained = not _is_up_to_date(training.output, record)
    if was_trained:
        model = _train(training, list(_lines(training, sample)))
        training.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(training.output, model)
        tokenizer: Tokenizer = SentencePieceTokenizer(model)
        write_atomically(_record_path(training.output), _dump({**record, "sha256": tokenizer.sha256}))
    else:
        tokenizer = read_tokenizer(training.output)
    return TrainedTokenizer(
        path=training.output,
        sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        num_files=len(sample),
        sample_bytes=min(sum(file.size_bytes for file in sample), training.sample_bytes),
        was_trained=was_trained,
    )


def choose_sample(files: Sequence[InputFile], training: TokenizerTraining) -> list[InputFile]:
    """Choose training files in the order of their names' hashes until ``sample_bytes`` are reached.

    This order mixes folders evenly and needs no random numbers.
    """
    reading = training.source.reading
    candidates = [file for file in files if holds_many(file, reading) or _is_train(training, file, None)]
    sample: list[InputFile] = []
    num_bytes = 0
    for file in sorted(candidates, key=lambda file: (name_fraction(file.path), file.path)):
        if num_bytes >= training.sample_bytes:
            break
        sample.append(file)
        num_bytes += file.size_bytes
    return sample


def _lines(training: TokenizerTraining, sample: Sequence[InputFile]) -> Iterator[str]:
    """Yield the lines of the sample; a piece never spans two lines, and long lines are cut."""
    for text in _texts(training, sample):
        for line in text.split("\n"):
            for start in range(0, len(line), LONGEST_LINE_CHARACTERS):
                yield line[start : start + LONGEST_LINE_CHARACTERS]


def _texts(training: TokenizerTraining, sample: Sequence[InputFile]) -> Iterator[str]:
    """Yield the documents of the sample until ``sample_bytes`` are reached; the last one is cut."""
    remaining = training.sample_bytes
    for file in sample:
        for record in read_records(
            full_range(file), training.source.reading, partial(_is_train, training, file)
        ):
            if isinstance(record, BadRecord):
                place = RejectedRecord(path=file.path, line=record.line, reason=record.reason).place
                logger.info("the tokenizer's sample skips %s: %s", place, record.reason)
                continue
            text = record.text
            yield text[:remaining]
            remaining -= len(text.encode())
            if remaining <= 0:
                return


def _is_train(training: TokenizerTraining, file: InputFile, position: int | None) -> bool:
    return split_of(document_name(file, position), training.heldout_fraction) == TRAIN


def _train(training: TokenizerTraining, lines: Sequence[str]) -> bytes:
    if not lines:
        raise DataError(
            f"{training.source.description} must hold text to train on, but the sample of it is empty"
        )
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=training.model_type,
            vocab_size=training.vocab_size,
            # Lossless: no normalisation, every space is kept, every byte has a piece.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            eos_id=0,
            eos_piece=EOD_PIECE,
            unk_id=1,
            bos_id=-1,
            pad_id=-1,
            max_sentence_length=4 * LONGEST_LINE_CHARACTERS + 1,
            # The model file records the number of threads, so the same bytes need the same number.
            num_threads=2,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"a vocabulary of {training.vocab_size} must fit the sample of {training.source.description}, "
            f"but sentencepiece reports: {str(error).split('] ')[-1].strip()}; "
            "choose a smaller vocabulary or a larger sample"
        ) from error
    return model.getvalue()


def _record_path(output: Path) -> Path:
    return output.with_name(output.name + ".json")


def _training_record(training: TokenizerTraining, sample: Sequence[InputFile]) -> dict[str, object]:
    settings = training.model_dump(
        mode="json", include={"vocab_size", "model_type", "sample_bytes", "heldout_fraction"}
    )
    return {
        "settings": settings,
        "reading": training.source.reading.model_dump(),
        "source": training.source.description,
        "fingerprint": files_fingerprint(sample),
    }


def _is_up_to_date(output: Path, record: dict[str, object]) -> bool:
    try:
        found = json.loads(_record_path(output).read_bytes())
        return bool(found == {**record, "sha256": read_tokenizer(output).sha256})
    except (FileNotFoundError, json.JSONDecodeError, DataError):
        return False


def _dump(record: dict[str, object]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()
