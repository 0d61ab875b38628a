"""Train a sentencepiece tokenizer on a sample of limited size from a text source."""

import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from sentencepiece import SentencePieceTrainer

from data_prep.inputs.documents import InputFile, TextFiles, TextFolder, files_fingerprint
from data_prep.inputs.finding import find_files
from data_prep.leftovers import remove_abandoned
from data_prep.manifest import each_once
from data_prep.output import output_errors
from data_prep.regular_files import read_regular_file
from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.sampling import Sample, SampleSettings, choose_files, draw_sample
from data_prep.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically
from pipeline.shared.progress import Progress, SilentProgress
from pipeline.shared.units import render_bytes

logger = logging.getLogger(__name__)

EOD_PIECE = "<|endoftext|>"
# The end-of-document and the unknown piece, and one piece per byte.
RESERVED_PIECES = 2 + 256
LONGEST_LINE_CHARACTERS = 4096
_LARGEST_RECORD_BYTES = 1 << 20


class TokenizerTraining(BaseModel):
    """What to train a tokenizer on, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: TextFolder | TextFiles
    output: Path
    vocab_size: int = Field(default=4096, gt=RESERVED_PIECES, le=1_000_000)
    model_type: Literal["bpe", "unigram"] = "bpe"
    sample_bytes: PositiveInt = 4_000_000
    heldout_fraction: float = Field(default=0.05, ge=0.0, lt=1.0)
    max_bad_files: NonNegativeInt = Field(
        default=0, description="files of the sample that may be unreadable, or not to their end"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTokenizer:
    """Result of :func:`train_tokenizer`; ``was_trained`` is False if the file was up to date."""

    path: Path
    sha256: str
    vocab_size: int
    num_files: int
    sample_bytes: int
    was_trained: bool


def train_tokenizer(
    training: TokenizerTraining, *, open_bar: Callable[[int], Progress] = lambda _total: SilentProgress()
) -> TrainedTokenizer:
    """Train the tokenizer, unless the file at ``output`` was already trained on the same text and settings.

    The same text and settings produce the same bytes. Held-out documents are never used.

    Args:
        training: text and settings.
        open_bar: opens a display of so many units: the files of the sample, and one for the training.
    Raises:
        DataError: the sample is too small for the vocabulary, holds no text, or misses files that are lost;
            or the output is an input, or cannot be written.
    """
    settings = SampleSettings(
        reading=training.source.reading,
        sample_bytes=training.sample_bytes,
        heldout_fraction=training.heldout_fraction,
    )
    files = find_files(training.source)
    chosen = choose_files(files, settings)
    record = _training_record(training, chosen)
    with output_errors(training.output):
        _check_output(training, files)
        remove_abandoned(training.output)
        remove_abandoned(_record_path(training.output))
        if _is_up_to_date(training.output, record):
            return _trained(training, chosen, was_trained=False)
        with open_bar(len(chosen) + 1) as bar:
            sample = draw_sample(chosen, settings, on_file=bar.advance)
            _check_lost(training, sample)
            bar.update(len(chosen), f"training on {render_bytes(sample.num_bytes)}")
            model = _train(training, list(_lines(sample)))
        training.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(training.output, model)
        sha256 = SentencePieceTokenizer(model).sha256
        write_atomically(_record_path(training.output), _dump({**record, "sha256": sha256}))
    return _trained(training, chosen, was_trained=True)


def _trained(
    training: TokenizerTraining, chosen: Sequence[InputFile], *, was_trained: bool
) -> TrainedTokenizer:
    tokenizer = read_tokenizer(training.output)
    return TrainedTokenizer(
        path=training.output,
        sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        num_files=len(chosen),
        sample_bytes=min(sum(file.size_bytes for file in chosen), training.sample_bytes),
        was_trained=was_trained,
    )


def _check_output(training: TokenizerTraining, files: Sequence[InputFile]) -> None:
    if str(training.output.resolve()) in {file.location for file in files}:
        raise DataError(f"the output {training.output} must not be an input, but is; choose another output")


def _check_lost(training: TokenizerTraining, sample: Sample) -> None:
    lost = each_once(sample.lost)
    for file in lost:
        logger.warning("the tokenizer's sample has lost %s: %s", file.path, file.reason)
    if len(lost) > training.max_bad_files:
        raise DataError(
            f"at most {training.max_bad_files} input files may be lost, but {len(lost)} are: {lost[0].path}: "
            f"{lost[0].reason}; repair or remove them, check --text-field, or allow more with --max-bad-files"
        )
    if sample.rejected:
        logger.warning(
            "the tokenizer's sample skips %d bad records, the first of them %s: %s",
            len(sample.rejected),
            sample.rejected[0].place,
            sample.rejected[0].reason,
        )


def _lines(sample: Sample) -> Iterator[str]:
    """Yield the lines of the sample; a piece never spans two lines, and long lines are cut."""
    for text in sample.texts:
        for line in text.split("\n"):
            for start in range(0, len(line), LONGEST_LINE_CHARACTERS):
                yield line[start : start + LONGEST_LINE_CHARACTERS]


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
        found = json.loads(read_regular_file(_record_path(output), largest_bytes=_LARGEST_RECORD_BYTES))
        return bool(found == {**record, "sha256": read_tokenizer(output).sha256})
    except (OSError, ValueError, RecursionError):
        return False


def _dump(record: dict[str, object]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()
