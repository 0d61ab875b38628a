"""Which input files make up which shard: a pure function of the inputs' names and sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.documents import InputFile, files_fingerprint
from data_prep.manifest import InputRange, PrepareSettings
from data_prep.splits import SPLITS, split_of

SHARDS_WANTED = 32
SMALLEST_SHARD_BYTES = 1 << 20
LARGEST_SHARD_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """A shard to be made: its file name and the run of input files it holds."""

    name: str
    split: str
    files: tuple[InputFile, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of text in the shard's inputs."""
        return sum(file.size_bytes for file in self.files)

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


def plan_shards(files: Sequence[InputFile], settings: PrepareSettings) -> list[PlannedShard]:
    """Cut the files of each split, in their order, into shards of about equal amounts of text.

    The number of workers plays no part, so that any number of them writes the same bytes.
    """
    target_bytes = settings.shard_text_bytes or default_shard_bytes(sum(file.size_bytes for file in files))
    by_split: dict[str, list[InputFile]] = {split: [] for split in SPLITS}
    for file in files:
        by_split[split_of(file.path, settings.heldout_fraction)].append(file)
    return [
        PlannedShard(name=f"{split}-{number:06d}.tar", split=split, files=tuple(run))
        for split in SPLITS
        for number, run in enumerate(_runs(by_split[split], target_bytes))
    ]


def default_shard_bytes(total_bytes: int) -> int:
    """Bytes of text per shard: enough shards to share out and to show progress by, none tiny or huge."""
    return min(max(total_bytes // SHARDS_WANTED, SMALLEST_SHARD_BYTES), LARGEST_SHARD_BYTES)


def _runs(files: Sequence[InputFile], target_bytes: int) -> Iterator[list[InputFile]]:
    run: list[InputFile] = []
    run_bytes = 0
    for file in files:
        if run and run_bytes + file.size_bytes > target_bytes:
            yield run
            run, run_bytes = [], 0
        run.append(file)
        run_bytes += file.size_bytes
    if run:
        yield run
