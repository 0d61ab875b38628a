"""The entry to tokenization: tasks on a local Ray that this command starts and stops."""

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from data_prep.manifest import ShardManifest
from data_prep.pair_preparation import prepare_pairs
from data_prep.preparation import Executor, PrepareRequest, execute_here, prepare_shards
from data_prep.progress import PrepareProgress, SilentProgress
from data_prep.tasks import ShardTask, StoppedTask, TaskReport, tokenize_shard

# two tasks per worker: the next one waits while one runs, and never more than that is in flight
TASKS_IN_FLIGHT_PER_WORKER = 2
RETRIES_OF_A_KILLED_WORKER = 2
# tasks and reports are a few kilobytes; this is the smallest store Ray accepts with room to spare
OBJECT_STORE_BYTES = 100_000_000
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def prepare(request: PrepareRequest, progress: PrepareProgress | None = None) -> ShardManifest:
    """Turn text into token shards, keep what is complete already, and return the manifest.

    Raises:
        DataError: the request cannot be met; what is finished by then is kept for the next run.
    """
    execute: Executor = execute_here
    if request.workers > 0:
        execute = RayExecutor(num_workers=request.workers, timeout_seconds=request.task_timeout_seconds)
    make = prepare_pairs if request.stored_as == "megatron" else prepare_shards
    return make(request, execute, progress or SilentProgress())


@dataclass(frozen=True, slots=True, kw_only=True)
class RayExecutor:
    """Executes tasks on a Ray of its own; workers read the input files themselves."""

    num_workers: int
    timeout_seconds: float

    def __call__(self, tasks: Sequence[ShardTask]) -> Generator[TaskReport | StoppedTask, None, None]:
        """Yield reports as shards are finished; closing the generator stops Ray."""
        # a run with nothing to do shall not pay for the import of Ray
        import ray
        import ray.exceptions

        with _local_ray(min(self.num_workers, len(tasks))):
            remote = ray.remote(num_cpus=1, max_retries=RETRIES_OF_A_KILLED_WORKER)(tokenize_shard)
            waiting = deque(tasks)
            in_flight: list[Any] = []
            try:
                while waiting or in_flight:
                    while waiting and len(in_flight) < TASKS_IN_FLIGHT_PER_WORKER * self.num_workers:
                        in_flight.append(remote.remote(waiting.popleft()))
                    finished, in_flight = ray.wait(in_flight, num_returns=1, timeout=self.timeout_seconds)
                    if not finished:
                        raise self._timed_out()
                    yield ray.get(finished[0], timeout=self.timeout_seconds)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                raise DataError(
                    f"a worker must finish its shard, but died {RETRIES_OF_A_KILLED_WORKER + 1} times on one "
                    f"({type(error).__name__}); use fewer workers or smaller shards, and run the command "
                    "again: finished shards are kept"
                ) from error

    def _timed_out(self) -> DataError:
        return DataError(
            f"a shard must be finished every {self.timeout_seconds:.0f} seconds, but none was; use smaller "
            "shards or a longer task timeout, and run the command again: finished shards are kept"
        )


@contextmanager
def _local_ray(num_cpus: int) -> Iterator[None]:
    import ray

    # Ray puts sockets into its folder, whose path may not be long: hence not the user's TMPDIR
    folder = Path(tempfile.mkdtemp(prefix="megaponder-ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp")))
    try:
        with _environment(_RAY_ENVIRONMENT), _terminate_like_interrupt():
            with _interrupts_held():
                ray.init(
                    # a cluster named in the environment is not meant: this Ray is ours
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder),
                )
            # again, because Ray has put a handler of its own in place, which aborts
            with _terminate_like_interrupt():
                yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Put Ctrl-C off until the end: Ray cannot stop the processes of a start that was cut short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does: Ray is stopped and finished shards are kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
