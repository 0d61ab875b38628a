"""The jobs of a submission, and the folder of each for its record, state and logs."""

from dataclasses import dataclass
from pathlib import Path

from cluster.job_spec import JobSpec

SCRIPT_NAME = "job.sbatch"
# Output of the script, of all its attempts.
LOG_NAME = "job.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One job of a submission.

    Attributes:
        name: of its run.
        run_folder: of its run.
        job_folder: its own; that of the submission holds the script and the configuration of all.
        overrides: added to the command.
    """

    name: str
    run_folder: Path
    job_folder: Path
    overrides: tuple[str, ...] = ()


def places_of(spec: JobSpec) -> tuple[Place, ...]:
    """Return the jobs of a submission: one, the links of a chain, or the runs of a sweep."""
    if spec.sweep:
        return tuple(
            Place(
                name=member.name,
                run_folder=member.run_folder,
                job_folder=member.run_folder / spec.job_folder.parent.name / spec.job_folder.name,
                overrides=member.overrides,
            )
            for member in spec.sweep
        )
    folders = [spec.job_folder]
    if spec.chain > 1:
        folders = [link_folder(spec, link) for link in range(1, spec.chain + 1)]
    return tuple(Place(name=spec.name, run_folder=spec.run_folder, job_folder=folder) for folder in folders)


def link_folder(spec: JobSpec, link: int) -> Path:
    """Return the folder of a link of a chain, which are counted from 1."""
    return spec.job_folder.with_name(f"{spec.job_folder.name}-{link}")


def previous_link(job_folder: Path) -> Path | None:
    """Return the folder of the link before; None for a first link, and for what is no link."""
    base, _, number = job_folder.name.rpartition("-")
    before = job_folder.with_name(f"{base}-{int(number) - 1}") if number.isdecimal() else None
    return before if before is not None and before.is_dir() else None
