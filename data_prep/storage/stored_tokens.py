"""The documents of a prepared folder's shards, in either format."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import ShardEntry, ShardManifest
from data_prep.storage.megatron_format import PairRun, read_lengths
from data_prep.storage.shard_format import token_dtype
from data_prep.storage.shard_reader import document_lengths, iterate_documents
from data_prep.storage.token_file import TokenFile
from pipeline.shared.errors import DataError
from pipeline.shared.files import file_sha256

_BLOCK_TOKENS = 1 << 20


class StoredTokens(ABC):
    """A reader of the shards of a manifest."""

    def __init__(self, folder: Path, manifest: ShardManifest) -> None:
        """Take the folder; nothing is read yet."""
        self._folder = folder
        self._manifest = manifest

    @abstractmethod
    def documents(self, entry: ShardEntry) -> Iterator[NDArray[np.integer]]:
        """Yield the tokens of each document of a shard, including its end-of-document token."""

    @abstractmethod
    def lengths(self, entry: ShardEntry) -> NDArray[np.int64]:
        """Return [documents]: tokens of each document of a shard, including its end-of-document token."""

    @abstractmethod
    def damage(self, entry: ShardEntry) -> str | None:
        """Read a shard completely; return what is wrong with it, or None."""

    def pair_damage(self) -> Iterator[tuple[str, str]]:
        """Yield each file of several shards that does not match the manifest, and what is wrong."""
        return iter(())

    def check(self, entry: ShardEntry) -> None:
        """Read a shard completely.

        Raises:
            DataError: it does not match the manifest.
        """
        if (finding := self.damage(entry)) is not None:
            raise DataError(
                f"{self._folder / entry.name} must match its manifest, but {finding}; "
                "delete the file and run `megaponder data prepare` again: it makes missing shards again"
            )


def open_stored(folder: Path, manifest: ShardManifest) -> StoredTokens:
    """Return the reader for a folder's format."""
    return _Pairs(folder, manifest) if manifest.header.stored_as == "megatron" else _Shards(folder, manifest)


class _Shards(StoredTokens):
    """Every shard is a tar of its own."""

    def documents(self, entry: ShardEntry) -> Iterator[NDArray[np.integer]]:
        return iterate_documents(self._folder / entry.name, self._manifest.header.tokenizer.eod_id)

    def lengths(self, entry: ShardEntry) -> NDArray[np.int64]:
        if entry.num_documents == 0:
            return np.empty(0, dtype=np.int64)
        return document_lengths(self._folder / entry.name, self._manifest.header.tokenizer.eod_id)

    def damage(self, entry: ShardEntry) -> str | None:
        path = self._folder / entry.name
        if (finding := _wrong_size(path, entry.size_bytes)) is not None:
            return finding
        if (sha256 := file_sha256(path)) != entry.sha256:
            return f"its sha256 must be {entry.sha256}, but is {sha256}"
        return _wrong_counts(self.lengths(entry), entry)


class _Pairs(StoredTokens):
    """The shards of a split are runs of documents in its pair."""

    def documents(self, entry: ShardEntry) -> Iterator[NDArray[np.integer]]:
        file, dtype = self._bin(entry), token_dtype(self._manifest.header.token_type)
        offset_bytes = self._runs[entry.name].first_token * dtype.itemsize
        for length in self.lengths(entry).tolist():
            yield file.read(dtype, offset_bytes=offset_bytes, count=length)
            offset_bytes += length * dtype.itemsize

    def lengths(self, entry: ShardEntry) -> NDArray[np.int64]:
        return read_lengths(
            self._folder / f"{entry.split}.idx",
            first_document=self._runs[entry.name].first_document,
            num_documents=entry.num_documents,
        )

    def damage(self, entry: ShardEntry) -> str | None:
        for pair in self._manifest.pairs:
            finding = _wrong_size(self._folder / f"{pair.name}.bin", pair.bin_bytes)
            if pair.name == entry.split and finding is not None:
                return finding
        if (sha256 := self._sha256(entry)) != entry.sha256:
            return f"the sha256 of its tokens must be {entry.sha256}, but is {sha256}"
        try:
            return _wrong_counts(self.lengths(entry), entry)
        except DataError as error:
            return str(error)

    def pair_damage(self) -> Iterator[tuple[str, str]]:
        for pair in self._manifest.pairs:
            path = self._folder / f"{pair.name}.idx"
            finding = _wrong_size(path, pair.idx_bytes)
            if finding is None and (sha256 := file_sha256(path)) != pair.idx_sha256:
                finding = f"its sha256 must be {pair.idx_sha256}, but is {sha256}"
            if finding is not None:
                yield path.name, finding

    def _bin(self, entry: ShardEntry) -> TokenFile:
        return TokenFile(self._folder / f"{entry.split}.bin")

    def _sha256(self, entry: ShardEntry) -> str:
        """Return the checksum of a shard's tokens."""
        dtype = token_dtype(self._manifest.header.token_type)
        first = self._runs[entry.name].first_token
        file, digest = self._bin(entry), hashlib.sha256()
        for start in range(first, first + entry.num_tokens, _BLOCK_TOKENS):
            count = min(_BLOCK_TOKENS, first + entry.num_tokens - start)
            digest.update(file.read(dtype, offset_bytes=start * dtype.itemsize, count=count).data)
        return digest.hexdigest()

    @cached_property
    def _runs(self) -> dict[str, PairRun]:
        splits = [pair_runs(self._manifest.split_shards(split)) for split in self._manifest.splits]
        return {name: run for runs in splits for name, run in runs.items()}


def pair_runs(entries: tuple[ShardEntry, ...]) -> dict[str, PairRun]:
    """Return the place of each shard of a split in its pair, by the shard's name."""
    runs = {}
    first_token = first_document = 0
    for entry in entries:
        runs[entry.name] = PairRun(first_token=first_token, first_document=first_document)
        first_token += entry.num_tokens
        first_document += entry.num_documents
    return runs


def _wrong_size(path: Path, num_bytes: int) -> str | None:
    if not path.is_file():
        return "the file is missing"
    if (size_bytes := path.stat().st_size) != num_bytes:
        return f"it must have {num_bytes} bytes, but has {size_bytes}"
    return None


def _wrong_counts(lengths: NDArray[np.int64], entry: ShardEntry) -> str | None:
    expected, counts = (entry.num_documents, entry.num_tokens), (len(lengths), int(lengths.sum()))
    return None if counts == expected else f"documents and tokens in it must be {expected}, but are {counts}"
