"""A Ray of this command's own, on this machine: started for the work and stopped after it."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.on_ray.interrupts import environment, interrupts_held, terminate_like_interrupt

# tasks and reports are a few kilobytes; this is the smallest store Ray accepts with room to spare
OBJECT_STORE_BYTES = 100_000_000
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def local_ray(num_cpus: int) -> Iterator[None]:
    """Start a Ray with so many workers, and stop all its processes at the end."""
    import ray

    # Ray puts sockets into its folder, whose path may not be long: hence not the user's TMPDIR
    folder = Path(tempfile.mkdtemp(prefix="megaponder-ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp")))
    try:
        with environment(QUIET_RAY), terminate_like_interrupt():
            with interrupts_held():
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
            with terminate_like_interrupt():
                yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
