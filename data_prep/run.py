"""The entry to tokenization: chooses the executor of the tasks and the format of the result."""

import logging
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from functools import partial

from data_prep.manifest import ShardManifest
from data_prep.on_ray.cluster import cluster_ray
from data_prep.on_ray.executor import RayExecutor
from data_prep.on_ray.local import local_ray
from data_prep.output import output_errors
from data_prep.pair_preparation import prepare_pairs
from data_prep.preparation import Executor, PrepareRequest, execute_here, prepare_shards
from data_prep.progress import PrepareProgress
from data_prep.tasks import ShardTask, StoppedTask, TaskReport
from pipeline.shared.errors import DataError
from pipeline.shared.units import render_bytes

logger = logging.getLogger(__name__)

# On a Ray started here, the next task waits at the worker while one runs.
TASKS_IN_FLIGHT_PER_WORKER = 2


def prepare(request: PrepareRequest, progress: PrepareProgress | None = None) -> ShardManifest:
    """Tokenize text, except for shards that are complete already, and return the manifest.

    Raises:
        DataError: the request cannot be met; finished shards are kept for the next run.
    """
    make = prepare_pairs if request.stored_as == "megatron" else prepare_shards
    with output_errors(request.output):
        return make(request, _executor(request), progress or PrepareProgress())


def _executor(request: PrepareRequest) -> Executor:
    address = request.ray_address
    if request.workers == 0 and address is not None:
        raise DataError(
            f"--workers must be at least 1 to work on the Ray at {address}, but is 0, which uses only "
            "this process; remove one of the two"
        )
    if request.workers == 0:
        return execute_here

    def connect(tasks: Sequence[ShardTask]) -> AbstractContextManager[None]:
        return local_ray(min(request.workers, len(tasks))) if address is None else cluster_ray(address, tasks)

    # A cluster may have more CPUs than workers were requested: all tasks in flight run.
    per_worker = TASKS_IN_FLIGHT_PER_WORKER if address is None else 1
    on_ray = RayExecutor(
        connect=connect,
        num_in_flight=per_worker * request.workers,
        timeout_seconds=request.task_timeout_seconds,
    )
    return on_ray if address is not None else partial(_execute_small_here, on_ray, request.small_bytes)


def _execute_small_here(
    on_ray: Executor, small_bytes: int, tasks: Sequence[ShardTask]
) -> Generator[TaskReport | StoppedTask, None, None]:
    """Execute tasks in this process where that takes less time than to start Ray."""
    num_bytes = sum(task.shard.inputs.num_bytes for task in tasks)
    if num_bytes > small_bytes:
        return on_ray(tasks)
    logger.info("%s are tokenized in this process; Ray is for more", render_bytes(num_bytes))
    return execute_here(tasks)
