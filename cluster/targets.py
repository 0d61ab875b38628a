"""Where jobs can run, behind one interface."""

from pathlib import Path
from typing import Protocol

from cluster.job_record import JobRecord, JobStatus
from cluster.job_spec import JobSpec
from pipeline.config.submit_section import Target


class JobTarget(Protocol):
    """A place for jobs: local processes, SLURM, a Ray cluster.

    Every method that queries the target waits a bounded time and raises `ClusterError` if the target cannot
    be reached or refuses.
    """

    def render(self, spec: JobSpec) -> str:
        """Return what would be submitted, as a pure function of the job."""
        ...

    def submit(self, spec: JobSpec) -> tuple[JobRecord, ...]:
        """Submit a job whose folder exists; return its record, or one for each job of a chain or sweep."""
        ...

    def status(self, record: JobRecord) -> JobStatus: ...

    def logs(self, record: JobRecord) -> tuple[Path, ...]:
        """Return the logs a job writes now, in the order of ranks; none before it has started."""
        ...

    def cancel(self, record: JobRecord) -> None:
        """Stop a job for good; one that has ended stays as it is."""
        ...

    def requeue(self, record: JobRecord) -> JobRecord:
        """Let a running job save and restart, or restart one that has ended."""
        ...


def target_named(name: Target, *, ray_address: str | None = None) -> JobTarget:
    """Return a target; each is imported only where it is used.

    Args:
        name: which.
        ray_address: of the Ray cluster's Jobs API; None: RAY_API_SERVER_ADDRESS.
    """
    if name == "slurm":
        from cluster.slurm.target import SlurmTarget

        return SlurmTarget()
    if name == "ray":
        from cluster.on_ray.target import RayTarget

        return RayTarget(ray_address)
    from cluster.local.target import LocalTarget

    return LocalTarget()
