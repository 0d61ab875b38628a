"""End a run that hangs, after every rank has shown what it is doing.

A rank that hangs makes all others wait in a collective, so nothing but time tells that something is wrong.
A thread of each rank looks at the time since the last beat. When that passes the limit, the rank writes the
stacks of its threads to a file and tells the others in the job's store whether its main thread waits for
other ranks; who does not wait, or does not answer, is the one to look at. Then the process ends with the code
that asks to be started again. Nothing here needs the main thread, which may never come back.
"""

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # both are public
from torch.distributed.distributed_c10d import Store

from pipeline.ranks.environment import Ranks
from pipeline.shared.bounded import within
from pipeline.shared.exit_codes import ExitCode

__all__ = ["RankReport", "Watchdog", "at_fault", "stack_file"]

logger = logging.getLogger(__name__)

# How long ranks that noticed wait for each other's reports.
REPORT_SECONDS = 5.0
_POLL_SECONDS = 0.2
# Where a main thread that waits for other ranks stands: one of its innermost frames is in these files.
_WAITING_PLACES = (
    "torch/distributed/distributed_c10d.py",
    "megatron/core/pipeline_parallel/p2p_communication.py",
)
_INNERMOST_FRAMES = 4
_KEY = "watchdog"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """What a rank tells the others when it has noticed that nothing goes on.

    Attributes:
        doing: name of its last beat.
        waits: whether its main thread waits for other ranks.
        place: file, line and function its main thread is in.
    """

    doing: str
    waits: bool
    place: str


class Watchdog:
    """Watches one rank between ``start`` and ``stop``; use it as a context manager.

    Args:
        ranks: place of this process, and where the job's store is.
        limit_seconds: longest time between two beats; 0 watches nothing.
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
            # A connection of its own: the job's may be waiting inside a collective.
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
        """Say that the rank goes on, and with what."""
        self._doing = doing
        self._last_beat = time.monotonic()

    @contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """Around work of which nobody knows how long it takes, such as writing a checkpoint."""
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
        """Report and leave the process; nothing of it can be rescued."""
        # Disk, network and rank 0, in whose process the store lives, may be what hangs.
        within(2 * REPORT_SECONDS, lambda: self._report(silence))
        # The main thread may hold locks for ever: no handler of the interpreter's end may run.
        os._exit(ExitCode.REQUEUE)

    def _report(self, silence: float) -> None:
        own = _own_report(self._doing)
        logger.error(
            "rank %d: nothing finished for %.0f seconds (limit %.0f: parallel.watchdog_seconds); last begun: "
            "%s; its main thread is at %s; all stacks are in %s",
            self._ranks.rank,
            silence,
            self._limit_seconds,
            own.doing,
            own.place,
            stack_file(self._folder, self._ranks.rank),
        )
        _write_stacks(stack_file(self._folder, self._ranks.rank))
        assert self._store is not None, "the watchdog watches only while it is started"
        reports = _exchange(self._store, self._ranks, own)
        if self._ranks.rank == min(reports):
            logger.error("%s", at_fault(reports, self._ranks.world_size))
        logging.shutdown()


def at_fault(reports: dict[int, RankReport], world_size: int) -> str:
    """Say which ranks the others wait for.

    Args:
        reports: of the ranks that have answered.
        world_size: how many should have.
    """
    silent = [rank for rank in range(world_size) if rank not in reports]
    busy = [rank for rank, report in reports.items() if not report.waits]
    if silent:
        return f"ranks {silent} do not answer: they have died, or are stopped; look into their logs"
    if busy:
        places = ", ".join(f"rank {rank} ({reports[rank].doing}, at {reports[rank].place})" for rank in busy)
        return f"all other ranks wait for {places}"
    return "all ranks wait for each other: the network between them, or collectives in different orders"


def stack_file(folder: Path, rank: int) -> Path:
    """Where a rank writes the stacks of its threads."""
    return folder / f"rank_{rank:05d}.txt"


def _connect(ranks: Ranks) -> Store:
    return TCPStore(
        ranks.master_address,
        ranks.master_port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=REPORT_SECONDS),
    )


def _own_report(doing: str) -> RankReport:
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main or 0)
    if frame is None:
        return RankReport(doing=doing, waits=False, place="nowhere")
    place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
    waits = False
    for _ in range(_INNERMOST_FRAMES):
        if frame is None:
            break
        waits |= frame.f_code.co_filename.endswith(_WAITING_PLACES)
        frame = frame.f_back
    return RankReport(doing=doing, waits=waits, place=place)


def _write_stacks(path: Path) -> None:
    # A folder that cannot be written must not keep the run from ending.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)


def _exchange(store: Store, ranks: Ranks, own: RankReport) -> dict[int, RankReport]:
    """Give the own report and collect those of the others, as far as they come in time."""
    reports = {ranks.rank: own}
    within(REPORT_SECONDS, lambda: _collect(store, ranks, own, reports))
    if ranks.rank == 0:
        # The store ends with this process: the others shall have read it.
        time.sleep(_POLL_SECONDS * 5)
    return dict(sorted(reports.items()))


def _collect(store: Store, ranks: Ranks, own: RankReport, reports: dict[int, RankReport]) -> None:
    deadline = time.monotonic() + REPORT_SECONDS - _POLL_SECONDS
    with suppress(DistError):
        store.set(f"{_KEY}/{ranks.rank}", json.dumps(asdict(own)))
        while len(reports) < ranks.world_size and time.monotonic() < deadline:
            for rank in set(range(ranks.world_size)) - reports.keys():
                if store.check([f"{_KEY}/{rank}"]):
                    reports[rank] = RankReport(**json.loads(store.get(f"{_KEY}/{rank}")))
            time.sleep(_POLL_SECONDS)
