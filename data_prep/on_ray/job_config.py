"""What the workers of a Ray may import."""

import ray.job_config

from pipeline.shared.python_start import source_folder

__all__ = ["worker_imports"]


def worker_imports() -> ray.job_config.JobConfig:
    """Let workers import this program, but nothing from the working directory, where users keep files.

    Ray itself puts the working directory of this process first on the path of every worker, unless it takes
    the job for one that comes from elsewhere.
    """
    source = source_folder()
    return ray.job_config.JobConfig(
        _client_job=True, _py_driver_sys_path=[] if source is None else [str(source)]
    )
