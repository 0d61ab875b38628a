"""Save a run at its intervals: at once, or in the background while training continues.

A save in the background has two phases. All ranks copy their tensors to host memory together; then a thread
of each rank writes its copy. The threads meet in collectives of their own, so that these need a process group
of their own: collectives of one group must be called in the same order on all ranks, and nothing orders a
thread against the training loop. A thread cannot raise in the loop either. The loop polls once per step, and
the ranks agree on the outcome there, so that an error ends all of them in the same step.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed import ProcessGroup

from megatron_ext.device import HOST_BACKEND
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.protocols import MegatronOptimizer, ParameterScheduler, ShardedModule
from pipeline.checkpoint.forecast import forecast
from pipeline.checkpoint.save_times import record_save_seconds
from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.writing import Destination, PreparedSave, Saved, prepare_save, write_save
from pipeline.shared.errors import CheckpointError

logger = logging.getLogger(__name__)


def save_checkpoint(
    directory: Path,
    state: TrainState,
    *,
    module: ShardedModule,
    optimizer: MegatronOptimizer,
    scheduler: ParameterScheduler,
    groups: ParallelGroups,
    config_file: Path,
    keep_last: int | None = None,
) -> Path:
    """Save a run once; all ranks call it together, and it returns when the checkpoint is on disk.

    Args:
        directory, config_file, keep_last: see :class:`Destination`.
        state, module, optimizer, scheduler, groups: see :func:`prepare_save`.
    Returns:
        The checkpoint's folder.
    Raises:
        CheckpointError: it could not be written.
    """
    prepared = prepare_save(
        state, module=module, optimizer=optimizer, scheduler=scheduler, groups=groups, copies=False
    )
    to = Destination(directory=directory, config_file=config_file, keep_last=keep_last)
    return write_save(prepared, to).folder


@dataclass(kw_only=True)
class _Pending:
    """A checkpoint that a thread is writing."""

    iteration: int
    copy_seconds: float
    thread: threading.Thread | None = None
    saved: Saved | None = None
    error: Exception | None = None

    def write(self, prepared: PreparedSave, to: Destination, group: ProcessGroup) -> None:
        try:
            self.saved = write_save(prepared, to, group=group)
        # Every error: a thread that dies unseen would look as if it were still writing.
        except Exception as error:
            self.error = error

    @property
    def is_running(self) -> bool:
        return self.saved is None and self.error is None


@dataclass(kw_only=True)
class CheckpointSaver:
    """The saves of a run; all ranks call each method together, except :meth:`leave`.

    Attributes:
        destination: where checkpoints are written.
        module: the model without wrappers.
        optimizer, scheduler: of the run.
        groups: the parallel layout.
        in_background: whether training continues while a checkpoint is written; one save at a time.
        timeout_seconds: limit of collectives, and of the wait for a save in the background.
        times_file: where rank 0 records how long saves take; None records nothing.
    """

    destination: Destination
    module: ShardedModule
    optimizer: MegatronOptimizer
    scheduler: ParameterScheduler
    groups: ParallelGroups
    in_background: bool = False
    timeout_seconds: int = 600
    times_file: Path | None = None
    _group: ProcessGroup | None = field(default=None, init=False)
    _pending: _Pending | None = field(default=None, init=False)
    _has_forecast: bool = field(default=False, init=False)

    def save(self, state: TrainState) -> None:
        """Save; return when the checkpoint is on disk, or copied if it is written in the background.

        Waits for the previous save first.

        Raises:
            CheckpointError: this checkpoint or the one before it could not be written.
        """
        self._wait()
        started = time.monotonic()
        prepared = prepare_save(
            state,
            module=self.module,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            groups=self.groups,
            copies=self.in_background,
        )
        seconds = time.monotonic() - started
        if not self._has_forecast:
            logger.info("%s", forecast(prepared, self.destination.directory))
            self._has_forecast = True
        if self.in_background:
            self._start(prepared, seconds)
            logger.info("iteration %d: copied in %.2f s, being written", state.iteration, seconds)
            return
        saved = write_save(prepared, self.destination, group=self._own_group())
        logger.info("%s, after %.2f s to capture the state", saved, seconds)
        self._record(state.iteration, seconds + saved.seconds)

    def poll(self) -> None:
        """Check a save in the background; called once per step.

        Raises:
            CheckpointError: on all ranks in the same step, if it has failed on any.
        """
        if self._pending is None:
            return
        is_running, has_failed = self._agree(self._pending)
        if has_failed:
            self._raise(self._pending)
        if not is_running:
            saved = self._pending.saved
            assert saved is not None, "a save that has ended without an error has saved"
            logger.info("%s, in the background", saved)
            self._record(self._pending.iteration, self._pending.copy_seconds + saved.seconds)
            self._pending = None

    def finish(self) -> None:
        """Wait for a save in the background at the end of the run.

        Raises:
            CheckpointError: it has failed, or takes longer than the limit.
        """
        self._wait()
        if self._group is not None:
            torch.distributed.destroy_process_group(self._group)
            self._group = None

    def leave(self) -> None:
        """Wait for this rank's thread when the run has failed.

        Calls no collective, because other ranks may be elsewhere, or dead. Their threads are still writing,
        so the checkpoint is not lost; and a process that exits while its thread is in a collective aborts.
        """
        if self._pending is not None and self._pending.thread is not None:
            self._pending.thread.join(self.timeout_seconds)

    def _record(self, iteration: int, seconds: float) -> None:
        if self.times_file is not None and self.groups.rank == 0:
            record_save_seconds(self.times_file, iteration=iteration, seconds=seconds)

    def _start(self, prepared: PreparedSave, copy_seconds: float) -> None:
        pending = _Pending(iteration=prepared.state.iteration, copy_seconds=copy_seconds)
        pending.thread = threading.Thread(
            target=pending.write,
            args=(prepared, self.destination, self._own_group()),
            name=f"save of iteration {pending.iteration}",
            # A process that must exit waits for it only in leave(), with a limit.
            daemon=True,
        )
        self._pending = pending
        pending.thread.start()

    def _wait(self) -> None:
        pending = self._pending
        if pending is None:
            return
        assert pending.thread is not None
        pending.thread.join(self.timeout_seconds)
        self.poll()
        if self._pending is not None:
            self._pending = None
            raise CheckpointError(
                f"the checkpoint of iteration {pending.iteration} must be written within "
                f"parallel.timeout_seconds ({self.timeout_seconds}), but is not; raise it, or check the disk"
            )

    def _agree(self, pending: _Pending) -> tuple[bool, bool]:
        """Return whether any rank is still writing, and whether any has failed."""
        flags = torch.tensor([pending.is_running, pending.error is not None], dtype=torch.int32)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        is_running, has_failed = flags.tolist()
        return bool(is_running), bool(has_failed)

    def _raise(self, pending: _Pending) -> None:
        """Raise the errors of all ranks, which may differ."""
        self._pending = None
        texts: list[Any] = [None] * self.groups.world_size
        torch.distributed.all_gather_object(texts, None if pending.error is None else str(pending.error))
        reasons = sorted({text for text in texts if text is not None})
        raise CheckpointError("; ".join(reasons)) from pending.error

    def _own_group(self) -> ProcessGroup:
        """Return a group for writing only: its collectives must not interleave with those of training."""
        if self._group is None:
            self._group = torch.distributed.new_group(
                backend=HOST_BACKEND, timeout=timedelta(seconds=self.timeout_seconds)
            )
        return self._group
