"""Which input files make up which shard: a pure function of the inputs' names and sizes.

A file that is one document belongs to the split of its name. A file of many documents is read for both
splits, and each task keeps the documents of its own: parsing costs little beside tokenization.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.documents import InputFile, files_fingerprint
from data_prep.manifest import InputRange, PrepareSettings, ReadSettings
from data_prep.records import holds_many
from data_prep.splits import HELDOUT, SPLITS, split_of

SHARDS_WANTED = 32
SMALLEST_SHARD_BYTES = 1 << 20
LARGEST_SHARD_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """A shard to be made: its name, its run of input files, and the bytes of them that are its split's."""

    name: str
    split: str
    files: tuple[InputFile, ...]
    num_bytes: int

    @property
    def input_range(self) -> InputRange:
        """The inputs as the manifest names them."""
        return InputRange(
            first_file=self.files[0].path,
            last_file=self.files[-1].path,
            num_files=len(self.files),
            num_bytes=self.num_bytes,
            fingerprint=files_fingerprint(self.files),
        )


def plan_shards(
    files: Sequence[InputFile], settings: PrepareSettings, reading: ReadSettings
) -> list[PlannedShard]:
    """Cut the files of each split, in their order, into shards of about equal amounts of text.

    The number of workers plays no part, so that any number of them writes the same bytes.
    """
    target_bytes = settings.shard_text_bytes or default_shard_bytes(sum(file.size_bytes for file in files))
    shards = []
    for split in SPLITS:
        shares = [(file, share) for file in files if (share := _share(file, split, settings, reading)) > 0]
        for number, run in enumerate(_runs(shares, target_bytes)):
            shards.append(
                PlannedShard(
                    name=f"{split}-{number:06d}.tar",
                    split=split,
                    files=tuple(file for file, _ in run),
                    num_bytes=sum(_share_bytes(file, share) for file, share in run),
                )
            )
    return shards


def default_shard_bytes(total_bytes: int) -> int:
    """Bytes of text per shard: enough shards to share out and to show progress by, none tiny or huge."""
    return min(max(total_bytes // SHARDS_WANTED, SMALLEST_SHARD_BYTES), LARGEST_SHARD_BYTES)


def _share(file: InputFile, split: str, settings: PrepareSettings, reading: ReadSettings) -> float:
    """Expected share of a file's documents that are in a split."""
    if not holds_many(file, reading):
        return float(split_of(file.path, settings.heldout_fraction) == split)
    return settings.heldout_fraction if split == HELDOUT else 1 - settings.heldout_fraction


def _share_bytes(file: InputFile, share: float) -> int:
    return round(file.size_bytes * share)


def _runs(
    shares: Sequence[tuple[InputFile, float]], target_bytes: int
) -> Iterator[list[tuple[InputFile, float]]]:
    run: list[tuple[InputFile, float]] = []
    run_bytes = 0
    for file, share in shares:
        if run and run_bytes + _share_bytes(file, share) > target_bytes:
            yield run
            run, run_bytes = [], 0
        run.append((file, share))
        run_bytes += _share_bytes(file, share)
    if run:
        yield run
