"""Execute tasks on Ray: a limit on tasks in flight, retries if a worker dies, a limit on every wait."""

import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from data_prep.tasks import ShardTask, StoppedTask, TaskReport, tokenize_shard
from pipeline.shared.errors import DataError

RETRIES_OF_A_KILLED_WORKER = 2
# A new process after so many tasks frees what libraries leak.
TASKS_OF_A_WORKER = 64
SECONDS_BETWEEN_LOOKS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayExecutor:
    """An executor of tasks on Ray; workers read the input files themselves.

    Attributes:
        connect: connects this process to Ray for the given tasks, and disconnects at the end.
        num_in_flight: tasks that are submitted at a time.
        timeout_seconds: longest wait for any of them.
    """

    connect: Callable[[Sequence[ShardTask]], AbstractContextManager[None]]
    num_in_flight: int
    timeout_seconds: float

    def __call__(self, tasks: Sequence[ShardTask]) -> Generator[TaskReport | StoppedTask, None, None]:
        """Yield reports as shards are finished; closing the generator disconnects from Ray."""
        # Imported here: a run without missing shards does not need Ray.
        import ray
        import ray.exceptions

        with self.connect(tasks):
            try:
                yield from self._reports(tasks)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                raise DataError(
                    f"a worker must finish its shard, but died {RETRIES_OF_A_KILLED_WORKER + 1} times on one "
                    f"({type(error).__name__}); use fewer workers or smaller shards, and run the command "
                    "again: finished shards are kept"
                ) from error
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, DataError):
                    # Without the worker's traceback, which is part of Ray's message.
                    raise error.cause from None
                raise

    def _reports(self, tasks: Sequence[ShardTask]) -> Generator[TaskReport | StoppedTask, None, None]:
        import ray

        remote = ray.remote(
            num_cpus=1,
            max_retries=RETRIES_OF_A_KILLED_WORKER,
            max_calls=TASKS_OF_A_WORKER,
            scheduling_strategy="SPREAD",
        )(tokenize_shard)
        waiting = deque(tasks)
        in_flight: list[Any] = []
        while waiting or in_flight:
            while waiting and len(in_flight) < self.num_in_flight:
                in_flight.append(remote.remote(waiting.popleft()))
            finished = self._wait(in_flight)
            in_flight.remove(finished)
            yield ray.get(finished, timeout=self.timeout_seconds)

    def _wait(self, in_flight: list[Any]) -> Any:
        """Return one that is finished.

        Raises:
            DataError: none finishes in time, or Ray has stopped, which its own wait does not report.
        """
        import ray

        address = ray.get_runtime_context().gcs_address
        end = time.monotonic() + self.timeout_seconds
        while (seconds_left := end - time.monotonic()) > 0:
            seconds = min(seconds_left, SECONDS_BETWEEN_LOOKS)
            finished, _ = ray.wait(in_flight, num_returns=1, timeout=seconds)
            if finished:
                return finished[0]
            if not _is_there(address):
                raise DataError(
                    f"Ray must run until the work is done, but the one at {address} has stopped; start it, "
                    "if this command does not, and run the command again: finished shards are kept"
                )
        raise DataError(
            f"a shard must be finished every {self.timeout_seconds:.0f} seconds, but none was; use smaller "
            "shards or a longer task timeout, and run the command again: finished shards are kept"
        )


def _is_there(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_BETWEEN_LOOKS):
            return True
    except OSError:
        return False
