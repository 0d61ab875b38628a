"""What a checkpoint will cost in space and time, predicted before the first is written."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed

from pipeline.checkpoint.agreement import on_all_ranks
from pipeline.checkpoint.checksums import digest_file
from pipeline.checkpoint.writing import PreparedSave
from pipeline.shared.errors import CheckpointError
from pipeline.shared.units import render_bytes

_LARGEST_PROBE_BYTES = 32_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Predicted cost of every checkpoint of the run.

    Attributes:
        num_bytes: size of all ranks' tensors.
        host_bytes: host memory that a save needs, on the rank that needs most.
        probe_bytes, probe_seconds: size of the files that all ranks wrote to test the disk, and the time of
            the slowest rank.
        free_bytes: free space on the disk.
    """

    num_bytes: int
    host_bytes: int
    probe_bytes: int
    probe_seconds: float
    free_bytes: int

    @property
    def bytes_per_second(self) -> float:
        """Speed of all ranks together."""
        return self.probe_bytes / max(self.probe_seconds, 1e-9)

    @property
    def fits(self) -> bool:
        """Whether the disk has space for one checkpoint."""
        return self.num_bytes <= self.free_bytes

    @property
    def seconds(self) -> float:
        """Time to write one checkpoint."""
        return self.num_bytes / self.bytes_per_second

    def __str__(self) -> str:
        free = f"{render_bytes(self.free_bytes)} are free"
        warning = "" if self.fits else ", TOO LITTLE for one checkpoint"
        return (
            f"every checkpoint: about {render_bytes(self.num_bytes)} on disk ({free}{warning}), "
            f"up to {render_bytes(self.host_bytes)} of host memory per rank, "
            f"about {self.seconds:.2f} s to write "
            f"({render_bytes(self.bytes_per_second)}/s in a probe of {render_bytes(self.probe_bytes)})"
        )


def forecast(prepared: PreparedSave, directory: Path) -> Forecast:
    """Predict what a prepared checkpoint costs, from a test of the disk; all ranks call it together.

    Args:
        prepared: this rank's part.
        directory: the run's checkpoint folder; created if it does not exist.
    Raises:
        CheckpointError: the folder is not writable.
    """
    probe_bytes = min(prepared.num_bytes, _LARGEST_PROBE_BYTES)
    try:
        found = on_all_ranks(
            lambda: (prepared.num_bytes, prepared.host_bytes, probe_bytes, _probe(directory, probe_bytes))
        )
    except CheckpointError as error:
        raise CheckpointError(f"could not write the checkpoint folder {directory}: {error}") from error
    num_bytes, host_bytes, probed, seconds = zip(*found, strict=True)
    return Forecast(
        num_bytes=sum(num_bytes),
        host_bytes=max(host_bytes),
        probe_bytes=sum(probed),
        probe_seconds=max(seconds),
        free_bytes=shutil.disk_usage(directory).free,
    )


def _probe(directory: Path, num_bytes: int) -> float:
    """Write a file, compute its checksum and remove it; return the seconds that writing took."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f".probe_{torch.distributed.get_rank()}"
    # Random values, which no file system can compress.
    values = torch.randint(256, (num_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    started = time.monotonic()
    try:
        with path.open("wb") as stream:
            # Not torch.save, which hides the error of a full disk behind one of its own.
            stream.write(values.numpy().data)
        digest_file(path, flushes=True)
        return time.monotonic() - started
    finally:
        path.unlink(missing_ok=True)
