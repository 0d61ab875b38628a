"""The entry to tokenization: who executes the tasks, and what is made of them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from data_prep.manifest import ShardManifest
from data_prep.on_ray.cluster import cluster_ray
from data_prep.on_ray.executor import RayExecutor
from data_prep.on_ray.local import local_ray
from data_prep.pair_preparation import prepare_pairs
from data_prep.preparation import Executor, PrepareRequest, execute_here, prepare_shards
from data_prep.progress import PrepareProgress
from data_prep.tasks import ShardTask
from pipeline.shared.errors import DataError
from pipeline.shared.files import disk_full_as_data_error

# on a Ray of one's own the next task waits at the worker while one runs
TASKS_IN_FLIGHT_PER_WORKER = 2


def prepare(request: PrepareRequest, progress: PrepareProgress | None = None) -> ShardManifest:
    """Turn text into tokens, keep what is complete already, and return the manifest.

    Raises:
        DataError: the request cannot be met; what is finished by then is kept for the next run.
    """
    make = prepare_pairs if request.stored_as == "megatron" else prepare_shards
    with disk_full_as_data_error(request.output):
        return make(request, _executor(request), progress or PrepareProgress())


def _executor(request: PrepareRequest) -> Executor:
    address = request.ray_address
    if request.workers == 0 and address is not None:
        raise DataError(
            f"--workers must be at least 1 to work on the Ray at {address}, but is 0, which is this process "
            "alone; leave out one of the two"
        )
    if request.workers == 0:
        return execute_here

    def connect(tasks: Sequence[ShardTask]) -> AbstractContextManager[None]:
        return local_ray(min(request.workers, len(tasks))) if address is None else cluster_ray(address, tasks)

    # a cluster has CPUs for more than was asked for: what is in flight is what runs
    per_worker = TASKS_IN_FLIGHT_PER_WORKER if address is None else 1
    return RayExecutor(
        connect=connect,
        num_in_flight=per_worker * request.workers,
        timeout_seconds=request.task_timeout_seconds,
    )
