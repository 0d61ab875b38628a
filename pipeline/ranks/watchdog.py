"""End a run that hangs, after every rank has reported what it is doing.

A rank that hangs makes all others wait in a collective, so that only elapsed time reveals the problem. A
thread of each rank checks the time since the last beat. When that exceeds the limit, the rank writes the
stacks of its threads to a file and reports in the job's store whether its main thread is waiting for other
ranks. A rank that is not waiting, or does not report, is the one to look at. Then the process exits with the
code that asks for a restart. Nothing here needs the main thread, which may be blocked for ever.
"""

import ast
import faulthandler
import itertools
import json
import linecache
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # both are public
from torch.distributed.distributed_c10d import Store

from megatron_ext.device import has_cuda
from pipeline.ranks.environment import Ranks
from pipeline.ranks.flight_recorder import collectives_in_flight, read_recorder, write_recorder
from pipeline.shared.bounded import wait_until, within
from pipeline.shared.exit_codes import ExitCode

__all__ = ["RankReport", "Watchdog", "describe_fault", "ranks_at_fault", "recorder_file", "stack_file"]

logger = logging.getLogger(__name__)

# How long a rank waits for the reports of the others.
REPORT_SECONDS = 5.0
_RECORDER_SECONDS = 2.0
_POLL_SECONDS = 0.2
# A main thread that waits for other ranks has one of its innermost frames in one of these files.
_WAITING_PLACES = (
    "torch/distributed/distributed_c10d.py",
    "megatron/core/pipeline_parallel/p2p_communication.py",
)
_INNERMOST_FRAMES = 4
# On a GPU the host waits for other ranks where it waits for its device: in calls with these names.
_WAITING_CALLS = frozenset({"tolist", "item", "cpu", "synchronize", "wait"})
_KEY = "watchdog"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """What a rank reports to the others when its time limit has passed.

    Attributes:
        doing: description of its last beat.
        waits: whether its main thread is waiting for other ranks.
        place: file, line and function that its main thread is in.
    """

    doing: str
    waits: bool
    place: str


class Watchdog:
    """A watch over one rank; it is active inside its context.

    Args:
        ranks: this process among the ranks, and the address of the job's store.
        limit_seconds: longest time between two beats; 0 switches the watch off.
        folder: where stacks are written.
    """

    def __init__(self, ranks: Ranks, *, limit_seconds: float, folder: Path) -> None:
        self._ranks = ranks
        self._limit_seconds = limit_seconds
        self._folder = folder
        self._doing = "start"
        self._last_beat = time.monotonic()
        self._num_pauses = 0
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._store: Store | None = None

    def __enter__(self) -> Self:
        if self._limit_seconds > 0:
            # A connection of its own: that of the process group may be blocked inside a collective.
            self._store = _connect(self._ranks)
            self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._is_stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=REPORT_SECONDS)

    def beat(self, doing: str) -> None:
        """Report progress: the rank starts something new.

        Args:
            doing: description of what it starts, for the report.
        """
        self._doing = doing
        self._last_beat = time.monotonic()

    @contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """Suspend the watch during work whose duration is unknown, such as writing a checkpoint."""
        self.beat(doing)
        self._num_pauses += 1
        try:
            yield
        finally:
            self._num_pauses -= 1
            self.beat(doing)

    def _watch(self) -> None:
        while not self._is_stopped.wait(min(_POLL_SECONDS, self._limit_seconds / 4)):
            silence = time.monotonic() - self._last_beat
            if silence > self._limit_seconds and self._num_pauses == 0:
                self._end(silence)

    def _end(self, silence: float) -> None:
        """Report and end the process."""
        # The disk, the network, or rank 0, in whose process the store lives, may be what hangs.
        within(2 * REPORT_SECONDS, lambda: self._report(silence))
        # Not sys.exit: the main thread may hold locks for ever, and exit handlers would wait for them.
        os._exit(ExitCode.REQUEUE)

    def _report(self, silence: float) -> None:
        # The driver of a device that hangs may not return.
        entries = within(_RECORDER_SECONDS, read_recorder) or [] if has_cuda() else []
        own = _own_report(self._doing, entries)
        logger.error(
            "rank %d: no progress for %.0f seconds (limit %.0f: parallel.watchdog_seconds); last started: "
            "%s; its main thread is at %s; all stacks are in %s",
            self._ranks.rank,
            silence,
            self._limit_seconds,
            own.doing,
            own.place,
            stack_file(self._folder, self._ranks.rank),
        )
        _write_stacks(stack_file(self._folder, self._ranks.rank))
        if entries:
            with suppress(OSError):
                write_recorder(entries, recorder_file(self._folder, self._ranks.rank))
        assert self._store is not None, "the watchdog watches only while it is started"
        reports = _exchange(self._store, self._ranks, own)
        if self._ranks.rank == min(reports):
            logger.error("%s", describe_fault(reports, self._ranks.world_size))
        logging.shutdown()


def ranks_at_fault(reports: dict[int, RankReport], world_size: int) -> list[int]:
    """Return the ranks that the others wait for.

    A rank without a report explains why others are busy or wait, so such ranks come before any that are busy.

    Args:
        reports: of the ranks that have responded.
        world_size: ranks of the job.
    Returns:
        Empty if all ranks wait for each other.
    """
    silent = [rank for rank in range(world_size) if rank not in reports]
    return silent or [rank for rank, report in reports.items() if not report.waits]


def describe_fault(reports: dict[int, RankReport], world_size: int) -> str:
    """Render the ranks at fault, and where they are, for the log."""
    at_fault = ranks_at_fault(reports, world_size)
    if not at_fault:
        return "all ranks wait for each other: the network between them, or collectives in different orders"
    if at_fault[0] not in reports:
        return f"ranks {at_fault} do not respond: they have died, or are stopped; look into their logs"
    places = (f"rank {rank} ({reports[rank].doing}, at {reports[rank].place})" for rank in at_fault)
    return f"all other ranks wait for {', '.join(places)}"


def stack_file(folder: Path, rank: int) -> Path:
    """Return where a rank writes the stacks of its threads."""
    return folder / f"rank_{rank:05d}.txt"


def recorder_file(folder: Path, rank: int) -> Path:
    """Return where a rank writes which collectives it has called, and which of them have ended."""
    return folder / f"rank_{rank:05d}.collectives.json"


def _connect(ranks: Ranks) -> Store:
    return TCPStore(
        ranks.master_address,
        ranks.master_port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=REPORT_SECONDS),
    )


def _own_report(doing: str, entries: Sequence[Mapping[str, Any]]) -> RankReport:
    """Describe what this rank does.

    Args:
        doing: description of its last beat.
        entries: collectives that were recorded; empty where nothing is recorded, as on CPUs.
    """
    in_flight = collectives_in_flight(entries)
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main or 0)
    if frame is None:
        return RankReport(doing=doing, waits=False, place="nowhere")
    place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
    if in_flight:
        place += f", while its device is in {in_flight[0]}"
    # Where it is known what the device does, nothing has to be concluded from what the host asks it.
    waits = bool(in_flight) or waits_for_others(frame, asks_device=has_cuda() and not entries)
    return RankReport(doing=doing, waits=waits, place=place)


def waits_for_others(frame: FrameType, *, asks_device: bool) -> bool:
    """Return whether a thread waits for other ranks.

    Args:
        frame: its innermost one.
        asks_device: whether reading a tensor waits for a device, which may be in a collective.
    """
    if asks_device and call_under_way(frame) in _WAITING_CALLS:
        return True
    outer: FrameType | None = frame
    for _ in range(_INNERMOST_FRAMES):
        if outer is None:
            break
        if outer.f_code.co_filename.endswith(_WAITING_PLACES):
            return True
        outer = outer.f_back
    return False


def call_under_way(frame: FrameType) -> str:
    """Return the name of the function that a frame is calling, such as ``tolist``; empty if there is none.

    Functions in C have no frame of their own.
    """
    positions = next(itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    first, last, start, end = positions
    if first is None or last is None or start is None or end is None:
        return ""
    lines = [linecache.getline(frame.f_code.co_filename, number) for number in range(first, last + 1)]
    # Columns count bytes.
    encoded = [line.encode() for line in lines]
    encoded[-1] = encoded[-1][:end]
    encoded[0] = encoded[0][start:]
    try:
        expression = ast.parse(b"".join(encoded).strip(), mode="eval").body
    except SyntaxError:
        return ""
    called = expression.func if isinstance(expression, ast.Call) else None
    return getattr(called, "attr", None) or getattr(called, "id", None) or ""


def _write_stacks(path: Path) -> None:
    # A folder that cannot be written must not prevent the process from ending.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)


def _exchange(store: Store, ranks: Ranks, own: RankReport) -> dict[int, RankReport]:
    """Send this rank's report and collect those of the others that come in time."""
    reports = {ranks.rank: own}
    within(REPORT_SECONDS, lambda: _collect(store, ranks, own, reports))
    if ranks.rank == 0:
        # The store ends with this process: give the others time to read it.
        time.sleep(_POLL_SECONDS * 5)
    return dict(sorted(reports.items()))


def _collect(store: Store, ranks: Ranks, own: RankReport, reports: dict[int, RankReport]) -> None:
    def all_have_reported() -> bool:
        for rank in set(range(ranks.world_size)) - reports.keys():
            if store.check([f"{_KEY}/{rank}"]):
                reports[rank] = RankReport(**json.loads(store.get(f"{_KEY}/{rank}")))
        return len(reports) == ranks.world_size

    with suppress(DistError):
        store.set(f"{_KEY}/{ranks.rank}", json.dumps(asdict(own)))
        wait_until(all_have_reported, seconds=REPORT_SECONDS - _POLL_SECONDS, poll_seconds=_POLL_SECONDS)
