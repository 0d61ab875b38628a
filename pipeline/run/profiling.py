"""Recording some iterations of a run with torch's profiler."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from torch.profiler import profile, record_function

from megatron_ext.device import profiled_activities, record_memory_history, write_memory_history
from pipeline.config.schema import ProfileSection
from pipeline.shared.files import temporary_path, write_atomically
from pipeline.shared.tables import Table

__all__ = ["Operation", "StepProfiler", "render_operations"]

logger = logging.getLogger(__name__)

# TensorBoard's plugin finds files that end so, and Perfetto opens them.
_TRACE_SUFFIX = ".pt.trace.json.gz"
_STEP = "ProfilerStep#"
_ROWS_ON_A_TERMINAL = 12
_ROWS_IN_A_FILE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The calls of one kind of operation, times without those of the operations that it calls.

    Attributes:
        name: of the operation or kernel.
        calls: number.
        host_seconds, device_seconds: of all calls; the device's are 0 on a CPU.
    """

    name: str
    calls: int
    host_seconds: float
    device_seconds: float


class StepProfiler:
    """Records the iterations that ``profile.steps`` names, on the ranks of ``profile.ranks``.

    A recording that fails is reported and given up: the training does not depend on it.
    """

    def __init__(self, settings: ProfileSection, folder: Path, *, rank: int) -> None:
        """Prepare a recording.

        Args:
            settings: which iterations and ranks.
            folder: for the files; it is created when there is something to write.
            rank: of this process.
        """
        self._steps = settings.steps if rank in settings.ranks else None
        self._folder = folder
        self._rank = rank
        self._profile: profile | None = None
        self._step: record_function | None = None
        self._first = self._last = 0
        self.operations: tuple[Operation, ...] = ()

    @property
    def is_recording(self) -> bool:
        """Whether an iteration is being recorded."""
        return self._profile is not None

    def start_step(self, iteration: int) -> None:
        """Begin to record, if it is time; called before each iteration."""
        if self._steps is None or not self._steps[0] <= iteration <= self._steps[1]:
            return
        if self._profile is None:
            self._first = iteration
            self._profile = profile(activities=profiled_activities(), record_shapes=True, profile_memory=True)
            record_memory_history()
            self._profile.start()
        self._last = iteration
        # TensorBoard's plugin knows iterations by this name.
        self._step = record_function(f"{_STEP}{iteration}")
        self._step.__enter__()

    def end_step(self, iteration: int) -> None:
        """End the record of an iteration, and write all of them after the last one; called after each."""
        if self._profile is None or self._steps is None:
            return
        self._end_range()
        if iteration == self._steps[1]:
            self.close()

    def close(self) -> None:
        """Write what has been recorded, also where the run ends before the last iteration to record."""
        recorded, self._profile = self._profile, None
        if recorded is None:
            return
        # It is done once in a process.
        self._steps = None
        self._end_range()
        try:
            recorded.stop()
            self._write(recorded)
        except (OSError, RuntimeError) as error:
            logger.warning("the profile could not be written: %s", error)

    def _end_range(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.__exit__(None, None, None)

    def _write(self, recorded: profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        stem = f"iterations_{self._first}-{self._last}_rank_{self._rank}"
        trace = self._folder / f"{stem}{_TRACE_SUFFIX}"
        partial = temporary_path(trace).with_suffix(".gz")
        try:
            recorded.export_chrome_trace(str(partial))
            partial.replace(trace)
        finally:
            partial.unlink(missing_ok=True)
        write_memory_history(self._folder / f"{stem}_memory.pickle")
        averages = recorded.key_averages()
        self.operations = operations_of(averages)
        text = averages.table(sort_by=_sorted_by(self.operations), row_limit=_ROWS_IN_A_FILE)
        write_atomically(self._folder / f"{stem}_operations.txt", text)
        logger.info("profile of iterations %d to %d written to %s", self._first, self._last, trace)


def operations_of(averages: Sequence[Any]) -> tuple[Operation, ...]:
    """Return the operations of a recording, the one with the longest time first.

    Args:
        averages: of `torch.profiler.profile.key_averages`.
    """
    found = [
        Operation(
            name=str(entry.key),
            calls=int(entry.count),
            host_seconds=entry.self_cpu_time_total / 1e6,
            device_seconds=entry.self_device_time_total / 1e6,
        )
        for entry in averages
        if not entry.key.startswith(_STEP)
    ]
    on_device = any(one.device_seconds for one in found)
    return tuple(sorted(found, key=lambda one: one.device_seconds if on_device else one.host_seconds)[::-1])


def render_operations(operations: Sequence[Operation]) -> Table:
    """Return the operations that took longest, as a table for a rich console."""
    on_device = any(one.device_seconds for one in operations)
    total = sum(one.device_seconds if on_device else one.host_seconds for one in operations)
    table = Table(title="longest operations of the profile", box=SIMPLE_HEAD, optional=("HOST MS",))
    table.add_column("OPERATION", overflow="fold")
    for heading in ("CALLS", "HOST MS", *(["DEVICE MS"] if on_device else []), "SHARE"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in operations[:_ROWS_ON_A_TERMINAL]:
        seconds = one.device_seconds if on_device else one.host_seconds
        table.add_row(
            one.name,
            f"{one.calls:,}",
            f"{one.host_seconds * 1e3:,.1f}",
            *([f"{one.device_seconds * 1e3:,.1f}"] if on_device else []),
            f"{seconds / total:.1%}" if total else "",
        )
    return table


def _sorted_by(operations: Sequence[Operation]) -> str:
    on_device = any(one.device_seconds for one in operations)
    return "self_device_time_total" if on_device else "self_cpu_time_total"
