"""The task of a worker: tokenize a run of input into one shard."""

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.inputs.documents import InputFile
from data_prep.inputs.ranges import FileRange
from data_prep.inputs.records import BadRecord, Document, Loss, document_name, line_of, read_records
from data_prep.manifest import LostFile, ReadSettings, RejectedRecord, ShardEntry, TokenType
from data_prep.output import output_errors
from data_prep.plan import PlannedShard, split_of
from data_prep.storage.shard_writer import ShardWriter, WrittenShard
from data_prep.tokenizers.encoding import Backend, CheckedEncoder, load_encoder
from data_prep.tokenizers.long_documents import Encode, encode_long
from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.tokenizer import EncodingError, Tokenizer
from pipeline.shared.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """Everything that a worker needs to make a shard, without the text."""

    shard: PlannedShard
    reading: ReadSettings
    heldout_fraction: float
    output: Path
    tokenizer: Path
    tokenizer_sha256: str
    tokenizer_backend: Backend
    eod_id: int
    bos_id: int | None
    token_type: TokenType
    member_tokens: int
    max_bad_records: int
    max_bad_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """A finished shard, and its time in seconds."""

    entry: ShardEntry
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedTask:
    """A task that found more bad records or lost files than the preparation may have; it has no shard."""

    rejected: tuple[RejectedRecord, ...]
    lost: tuple[LostFile, ...]


class _TooManyOmissionsError(Exception):
    """Ends a task while its documents are read."""


@dataclass(slots=True)
class _Omissions:
    """What a task does not take."""

    max_bad_records: int
    max_bad_files: int
    rejected: list[RejectedRecord] = field(default_factory=list)
    lost: dict[str, LostFile] = field(default_factory=dict)
    num_empty: int = 0

    def reject(self, file: InputFile, record: BadRecord) -> None:
        self.rejected.append(RejectedRecord(path=file.path, line=record.line, reason=record.reason))
        if len(self.rejected) > self.max_bad_records:
            raise _TooManyOmissionsError

    def lose(self, file: InputFile, loss: Loss) -> None:
        self.lost.setdefault(file.path, LostFile(path=file.path, line=loss.line, reason=loss.reason))
        if len(self.lost) > self.max_bad_files:
            raise _TooManyOmissionsError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A document, and the range that it is in."""

    part: FileRange
    document: Document


def tokenize_shard(task: ShardTask) -> TaskReport | StoppedTask:
    """Tokenize the task's input into its shard; a repetition writes the same bytes.

    Raises:
        DataError: the tokenizer or an input file was changed after the work was planned, or the disk is full.
    """
    start = time.monotonic()
    encode = _encode_of(task)
    omissions = _Omissions(task.max_bad_records, task.max_bad_files)
    try:
        with output_errors(task.output):
            written = _write_shard(task, encode, omissions)
    except _TooManyOmissionsError:
        return StoppedTask(rejected=tuple(omissions.rejected), lost=tuple(omissions.lost.values()))
    return TaskReport(entry=_entry(task, written, omissions), seconds=time.monotonic() - start)


def _write_shard(task: ShardTask, encode: Encode, omissions: _Omissions) -> WrittenShard:
    with ShardWriter(
        task.output / task.shard.name,
        token_type=task.token_type,
        eod_id=task.eod_id,
        member_tokens=task.member_tokens,
    ) as writer:
        begin = np.array([] if task.bos_id is None else [task.bos_id], dtype=np.int32)
        for found in _documents(task, omissions):
            try:
                if len(begin) > 0:
                    writer.add_tokens(begin)
                for ids in encode_long(encode, found.document.parts):
                    writer.add_tokens(ids)
                writer.end_document()
            except EncodingError as error:
                writer.abandon_document()
                line = line_of(found.document, found.part, task.reading)
                omissions.reject(found.part.file, BadRecord(line=line, reason=error.reason))
        return writer.finish()


def _documents(task: ShardTask, omissions: _Omissions) -> Iterator[_Found]:
    for part in task.shard.ranges:
        wanted = functools.partial(_is_in_split, task, part.file)
        for record in read_records(part, task.reading, wanted):
            match record:
                case BadRecord():
                    omissions.reject(part.file, record)
                case Loss():
                    omissions.lose(part.file, record)
                case Document() if record.is_empty:
                    omissions.num_empty += 1
                case Document():
                    yield _Found(part=part, document=record)


def _is_in_split(task: ShardTask, file: InputFile, position: int | None) -> bool:
    return split_of(document_name(file, position), task.heldout_fraction) == task.shard.split


def _entry(task: ShardTask, written: WrittenShard, omissions: _Omissions) -> ShardEntry:
    return ShardEntry(
        name=task.shard.name,
        split=task.shard.split,
        size_bytes=written.size_bytes,
        sha256=written.sha256,
        num_tokens=written.num_tokens,
        num_documents=written.num_documents,
        num_members=written.num_members,
        tokenizer_sha256=task.tokenizer_sha256,
        inputs=task.shard.inputs,
        num_empty_documents=omissions.num_empty,
        rejected=tuple(omissions.rejected),
        lost=tuple(omissions.lost.values()),
    )


def _encode_of(task: ShardTask) -> Encode:
    tokenizer, encoder = _load_tokenizer(task.tokenizer, task.tokenizer_sha256, task.tokenizer_backend)
    if encoder is None:
        return tokenizer.encode
    encoder.begin_task(task.shard.name)
    return encoder.encode


@functools.lru_cache(maxsize=1)
def _load_tokenizer(path: Path, sha256: str, backend: Backend) -> tuple[Tokenizer, CheckedEncoder | None]:
    # Cached, because a worker runs many tasks of the same preparation.
    tokenizer = read_tokenizer(path)
    if tokenizer.sha256 != sha256:
        raise DataError(
            f"the tokenizer must not change while text is tokenized, but {path} did; run the command again"
        )
    return tokenizer, load_encoder(path, tokenizer, backend)
