"""Where jobs can go, behind one interface."""

from pathlib import Path
from typing import Protocol

from cluster.job_record import JobRecord, JobStatus
from cluster.job_spec import JobSpec
from pipeline.config.submit_section import Target


class JobTarget(Protocol):
    """A way to machines: local processes, SLURM, a Ray cluster.

    Every method that asks the target waits a bounded time and raises `ClusterError` where it cannot be
    reached or refuses.
    """

    def render(self, spec: JobSpec) -> str:
        """Write what would be submitted, as a pure function of the job."""
        ...

    def submit(self, spec: JobSpec) -> tuple[JobRecord, ...]:
        """Submit a job whose folder exists; return its records: one, or one for each of a chain or sweep."""
        ...

    def status(self, record: JobRecord) -> JobStatus:
        """Ask where a job is."""
        ...

    def logs(self, record: JobRecord) -> tuple[Path, ...]:
        """Return the files a job writes now, the first rank's first; none before it has started."""
        ...

    def cancel(self, record: JobRecord) -> None:
        """Tell a job to end and not to come back; what has ended already stays as it is."""
        ...

    def requeue(self, record: JobRecord) -> JobRecord:
        """Tell a running job to save and start again, or start one again that has ended."""
        ...


def target_named(name: Target, *, ray_address: str | None = None) -> JobTarget:
    """Return a target; each is loaded only where it is used.

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
