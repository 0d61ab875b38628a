"""Write one shard, atomically, and always the same bytes for the same tokens."""

import hashlib
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import TokenType
from data_prep.storage.shard_format import LENGTH_DTYPE, LENGTHS_FIELD, TOKENS_FIELD, encode_npy, token_dtype
from pipeline.shared.files import publish, temporary_path


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShard:
    """The content of a finished shard file."""

    size_bytes: int
    sha256: str
    num_tokens: int
    num_documents: int
    num_members: int


class _Start(NamedTuple):
    """The state of a writer at the start of a document."""

    num_pending: int = 0
    num_pending_tokens: int = 0
    num_lengths: int = 0
    num_tokens: int = 0
    num_members: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What the first sample that was written inside a document has changed, as it was before."""

    pending: list[NDArray[np.integer]]
    lengths: list[int]
    size_bytes: int
    digest: Any


class ShardWriter:
    """A writer of documents into a webdataset tar.

    Use it as a context manager: after an exception, what was written is removed. The shard gets its name in
    :meth:`finish`. The tar is written with the standard library, because webdataset's writer would import
    torch in every worker; its pipeline reads these files.
    """

    def __init__(self, path: Path, *, token_type: TokenType, eod_id: int, member_tokens: int) -> None:
        """Open a temporary file in the folder of ``path``; ``member_tokens`` is the size of a sample."""
        self._path = path
        self._temporary = temporary_path(path)
        self._dtype = token_dtype(token_type)
        self._eod = np.array([eod_id], dtype=self._dtype)
        self._member_tokens = member_tokens
        # Tokens of the current sample, the lengths of its finished pieces, and that of the current piece.
        self._pending: list[NDArray[np.integer]] = []
        self._num_pending_tokens = 0
        self._lengths: list[int] = []
        self._num_piece_tokens = 0
        self._num_tokens = 0
        self._num_documents = 0
        self._num_members = 0
        self._start = _Start()
        self._before: _Written | None = None
        self._file = self._temporary.open("wb")
        self._hashing = _HashingFile(self._file)
        # For writing, TarFile calls only tell and write.
        self._tar = tarfile.TarFile(mode="w", fileobj=self._hashing, format=tarfile.USTAR_FORMAT)  # type: ignore[arg-type]

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def add_document(self, ids: NDArray[np.integer]) -> None:
        """Append a document's tokens and its end-of-document token."""
        self.add_tokens(ids)
        self.end_document()

    def add_tokens(self, ids: NDArray[np.integer]) -> None:
        """Append tokens to the current document; the bytes do not depend on the number of calls."""
        self._num_tokens += len(ids)
        while len(ids) > 0:
            room = self._member_tokens - self._num_pending_tokens
            piece, ids = ids[:room].astype(self._dtype, copy=False), ids[room:]
            self._pending.append(piece)
            self._num_pending_tokens += len(piece)
            self._num_piece_tokens += len(piece)
            if self._num_pending_tokens == self._member_tokens:
                self._write_member()

    def end_document(self) -> None:
        """Append the end-of-document token; the next tokens belong to another document."""
        self.add_tokens(self._eod)
        self._end_piece()
        self._num_documents += 1
        self._begin_document()

    def abandon_document(self) -> None:
        """Remove the tokens since the end of the last document, also those that are in the file."""
        start, before = self._start, self._before
        if before is not None:
            self._pending, self._lengths = before.pending, before.lengths
            self._hashing.return_to(before.size_bytes, before.digest)
            self._tar.offset = before.size_bytes
        del self._pending[start.num_pending :], self._lengths[start.num_lengths :]
        self._num_pending_tokens, self._num_piece_tokens = start.num_pending_tokens, 0
        self._num_tokens, self._num_members = start.num_tokens, start.num_members
        self._before = None

    def _begin_document(self) -> None:
        self._before = None
        self._start = _Start(
            len(self._pending),
            self._num_pending_tokens,
            len(self._lengths),
            self._num_tokens,
            self._num_members,
        )

    def finish(self) -> WrittenShard:
        """Write the last sample, sync the file, and rename it."""
        if self._pending:
            self._write_member()
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        publish(self._temporary, self._path)
        return WrittenShard(
            size_bytes=self._hashing.size_bytes,
            sha256=self._hashing.digest.hexdigest(),
            num_tokens=self._num_tokens,
            num_documents=self._num_documents,
            num_members=self._num_members,
        )

    def _write_member(self) -> None:
        if self._before is None:
            self._before = _Written(
                pending=self._pending,
                lengths=self._lengths[: self._start.num_lengths],
                size_bytes=self._hashing.size_bytes,
                digest=self._hashing.digest.copy(),
            )
        self._end_piece()
        key = f"{self._num_members:06d}"
        lengths = np.array(self._lengths, dtype=LENGTH_DTYPE)
        self._write_file(f"{key}.{LENGTHS_FIELD}", encode_npy(lengths))
        self._write_file(f"{key}.{TOKENS_FIELD}", encode_npy(np.concatenate(self._pending)))
        self._num_members += 1
        self._pending = []
        self._num_pending_tokens = 0
        self._lengths = []

    def _end_piece(self) -> None:
        if self._num_piece_tokens > 0:
            self._lengths.append(self._num_piece_tokens)
            self._num_piece_tokens = 0

    def _write_file(self, name: str, content: bytes) -> None:
        # A new TarInfo has owner, group and time zero: the bytes depend only on the content.
        member = tarfile.TarInfo(name)
        member.size = len(content)
        member.mode = 0o444
        self._tar.addfile(member, io.BytesIO(content))


class _HashingFile:
    """A file for writing that computes the checksum of its content."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def tell(self) -> int:
        return self.size_bytes

    def return_to(self, size_bytes: int, digest: Any) -> None:
        """Forget what was written after a size."""
        self._file.seek(size_bytes)
        self._file.truncate()
        self.size_bytes, self.digest = size_bytes, digest

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size_bytes += len(content)
        return self._file.write(content)
