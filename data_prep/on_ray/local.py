"""A Ray on this machine that is started for the work and stopped after it."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.on_ray.interrupts import environment, interrupts_held, terminate_like_interrupt
from pipeline.shared.errors import DataError
from pipeline.shared.python_start import python_variables

# Tasks and reports have a few kilobytes; this is somewhat more than the smallest store that Ray accepts.
OBJECT_STORE_BYTES = 100_000_000
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Says that there is only this machine: the programs of Ray then listen on its loopback interface, and nobody
# elsewhere can give them work. Otherwise Ray replaces a loopback address by that of the machine.
ONE_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextmanager
def local_ray(num_cpus: int) -> Iterator[None]:
    """Start Ray with a number of workers, on the loopback interface, and stop all its processes at the end.

    Raises:
        DataError: it does not start.
    """
    import ray

    try:
        # Not in the user's TMPDIR: Ray creates sockets in this folder, whose path must be short.
        folder = Path(tempfile.mkdtemp(prefix="megaponder-ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp")))
    except OSError as error:
        raise _not_started(error) from error
    try:
        with environment(QUIET_RAY | ONE_MACHINE | python_variables(os.environ)), terminate_like_interrupt():
            with interrupts_held(), _one_machine():
                _start(num_cpus, folder)
            # Again, because Ray has installed a handler that aborts.
            with terminate_like_interrupt():
                yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start(num_cpus: int, folder: Path) -> None:
    import ray

    from data_prep.on_ray.job_config import worker_imports

    try:
        ray.init(
            # Ignore a cluster named in the environment.
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.1",
            job_config=worker_imports(),
        )
    except Exception as error:  # of any kind: Ray starts several programs
        raise _not_started(error) from error


@contextmanager
def _one_machine() -> Iterator[None]:
    """Set `ONE_MACHINE` in this process, where Ray has read the variable when it was imported."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _not_started(error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(
        f"a Ray must start on this machine for the workers, but does not: {reason}; use --workers 0, which "
        "needs no Ray, set RAY_TMPDIR to a folder with a short path, or free memory"
    )
