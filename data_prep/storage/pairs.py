"""Merge shards into Megatron pairs: every shard is copied to its place, several at the same time."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_prep.manifest import PairEntry, ShardEntry, ShardManifest, TokenType
from data_prep.storage.megatron_format import (
    IndexLayout,
    PairRun,
    write_at,
    write_index_header,
    write_index_run,
)
from data_prep.storage.shard_format import locate_members, token_dtype
from data_prep.storage.shard_reader import read_array
from data_prep.storage.stored_tokens import StoredTokens, open_stored, pair_runs
from data_prep.storage.token_file import TokenFile
from pipeline.shared.files import file_sha256, publish, temporary_path


def write_pairs(source: Path, manifest: ShardManifest, output: Path, *, num_threads: int) -> ShardManifest:
    """Write one pair for each split of a folder of webdataset shards.

    Every shard is compared with its checksum before it is copied. A pair gets its name when it is complete.

    Returns:
        The manifest of the pairs; the caller saves it.
    Raises:
        DataError: a shard does not match the manifest.
    """
    shards: list[ShardEntry] = []
    pairs: list[PairEntry] = []
    with ThreadPoolExecutor(num_threads) as threads:
        for split in manifest.splits:
            merge = _Merge(source, manifest, output, split)
            entries, pair = merge.run(threads)
            shards += entries
            pairs.append(pair)
    header = manifest.header.model_copy(update={"stored_as": "megatron"})
    return ShardManifest(header=header, shards=tuple(shards), pairs=tuple(pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpenPair:
    """A pair that is being written."""

    bin_file: int
    idx_file: int
    layout: IndexLayout
    token_type: TokenType


class _Merge:
    """The merging of one split."""

    def __init__(self, source: Path, manifest: ShardManifest, output: Path, split: str) -> None:
        self._source = source
        self._manifest = manifest
        self._stored: StoredTokens = open_stored(source, manifest)
        self._split = split
        self._entries = manifest.split_shards(split)
        self._runs = pair_runs(self._entries)
        self._bin = output / f"{split}.bin"
        self._idx = output / f"{split}.idx"

    def run(self, threads: ThreadPoolExecutor) -> tuple[Sequence[ShardEntry], PairEntry]:
        """Copy all shards, then rename both files."""
        layout = IndexLayout(num_documents=sum(entry.num_documents for entry in self._entries))
        with _new_file(self._bin) as bin_file, _new_file(self._idx) as idx_file:
            pair = _OpenPair(
                bin_file=bin_file,
                idx_file=idx_file,
                layout=layout,
                token_type=self._manifest.header.token_type,
            )
            entries = list(threads.map(lambda entry: self._copy(entry, pair), self._entries))
            write_index_header(idx_file, layout, pair.token_type)
        return entries, PairEntry(
            name=self._split,
            bin_bytes=self._bin.stat().st_size,
            idx_bytes=self._idx.stat().st_size,
            idx_sha256=file_sha256(self._idx),
        )

    def _copy(self, entry: ShardEntry, pair: _OpenPair) -> ShardEntry:
        self._stored.check(entry)
        run = self._runs[entry.name]
        sha256 = self._copy_tokens(entry, pair, run)
        write_index_run(pair.idx_file, pair.layout, self._stored.lengths(entry), run, pair.token_type)
        return entry.model_copy(
            update={
                "name": entry.name.removesuffix(".tar"),
                "size_bytes": entry.num_tokens * token_dtype(pair.token_type).itemsize,
                "sha256": sha256,
            }
        )

    def _copy_tokens(self, entry: ShardEntry, pair: _OpenPair, run: PairRun) -> str:
        path = self._source / entry.name
        file = TokenFile(path)
        offset_bytes = run.first_token * token_dtype(pair.token_type).itemsize
        digest = hashlib.sha256()
        for member in locate_members(path):
            tokens = read_array(file, member.tokens)
            write_at(pair.bin_file, tokens.data, offset_bytes)
            digest.update(tokens.data)
            offset_bytes += tokens.nbytes
        return digest.hexdigest()


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """Open a file that gets its name when the block ends, and is removed if it fails."""
    temporary = temporary_path(path)
    with ExitStack() as stack:
        stack.callback(temporary.unlink, missing_ok=True)
        with temporary.open("wb") as file:
            yield file.fileno()
            os.fsync(file.fileno())
        publish(temporary, path)
