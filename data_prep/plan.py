"""Which parts of the input make up which shard: a pure function of the inputs' names and sizes.

A file that is one document belongs to the split of its name. A file of many documents is read for both
splits, and each task keeps the documents of its own: parsing costs little beside tokenization.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.inputs.documents import InputFile
from data_prep.inputs.ranges import FileRange, cut, is_cuttable, ranges_fingerprint
from data_prep.inputs.records import holds_many
from data_prep.manifest import InputRange, PrepareSettings, ReadSettings

TRAIN = "train"
HELDOUT = "heldout"
SPLITS = (TRAIN, HELDOUT)
SHARDS_WANTED = 32
SMALLEST_SHARD_BYTES = 1 << 20
LARGEST_SHARD_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """A shard to be made: its name, its run of input, and how many bytes of that are its split's.

    ``inputs`` is the run as the manifest names it.
    """

    name: str
    split: str
    ranges: tuple[FileRange, ...]
    inputs: InputRange


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A range, and how many of its bytes are expected to be the split's."""

    part: FileRange
    num_bytes: int


def plan_shards(
    files: Sequence[InputFile], settings: PrepareSettings, reading: ReadSettings
) -> list[PlannedShard]:
    """Cut the input of each split, in the order of the files, into shards of about equal amounts of text.

    The number of workers plays no part, so that any number of them writes the same bytes.
    """
    target_bytes = settings.shard_text_bytes or default_shard_bytes(sum(file.size_bytes for file in files))
    shards = []
    for split in SPLITS:
        pieces = [
            piece
            for file in files
            if (share := _share(file, split, settings, reading)) > 0
            for piece in _pieces(file, share, target_bytes, reading)
        ]
        for number, run in enumerate(_runs(pieces, target_bytes)):
            shards.append(_shard(f"{split}-{number:06d}.tar", split, run, reading))
    return shards


def default_shard_bytes(total_bytes: int) -> int:
    """Bytes of text per shard: enough shards to share out and to show progress by, none tiny or huge."""
    return min(max(total_bytes // SHARDS_WANTED, SMALLEST_SHARD_BYTES), LARGEST_SHARD_BYTES)


def _share(file: InputFile, split: str, settings: PrepareSettings, reading: ReadSettings) -> float:
    """Expected share of a file's documents that are in a split."""
    if not holds_many(file, reading):
        return float(split_of(file.path, settings.heldout_fraction) == split)
    return settings.heldout_fraction if split == HELDOUT else 1 - settings.heldout_fraction


def _pieces(file: InputFile, share: float, target_bytes: int, reading: ReadSettings) -> Iterator[_Piece]:
    """Cut a file that has more than a shard's text, if it can be, whatever other files there are."""
    num_ranges = max(-(-round(file.size_bytes * share) // target_bytes), 1)
    for part in cut(file, num_ranges if is_cuttable(file, reading) else 1):
        yield _Piece(part=part, num_bytes=round(part.num_bytes * share))


def _runs(pieces: Sequence[_Piece], target_bytes: int) -> Iterator[list[_Piece]]:
    run: list[_Piece] = []
    run_bytes = 0
    for piece in pieces:
        if run and run_bytes + piece.num_bytes > target_bytes:
            yield run
            run, run_bytes = [], 0
        run.append(piece)
        run_bytes += piece.num_bytes
    if run:
        yield run


def _shard(name: str, split: str, run: Sequence[_Piece], reading: ReadSettings) -> PlannedShard:
    ranges = tuple(piece.part for piece in run)
    last = ranges[-1]
    return PlannedShard(
        name=name,
        split=split,
        ranges=ranges,
        inputs=InputRange(
            first_file=ranges[0].file.path,
            first_byte=ranges[0].start,
            last_file=last.file.path,
            end_byte=None if last.stop == last.file.size_bytes else last.stop,
            num_files=len({part.file.path for part in ranges}),
            num_bytes=sum(piece.num_bytes for piece in run),
            fingerprint=ranges_fingerprint(ranges, reading),
        ),
    )


def split_of(name: str, heldout_fraction: float) -> str:
    """Choose the split of a document by the hash of its name.

    Args:
        name: the document's relative path with forward slashes.
        heldout_fraction: expected share of held-out documents, in [0, 1).
    """
    return HELDOUT if name_fraction(name) < heldout_fraction else TRAIN


def name_fraction(name: str) -> float:
    """Map a name to a number in [0, 1), uniform over names."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    # 53 bits fit a float exactly, so that no name rounds up to 1.0
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
