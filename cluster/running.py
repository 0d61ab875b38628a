"""Refusing a second job of a run while the first has not ended."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from cluster.job_files import load_end
from cluster.job_record import JobRecord, records_below
from cluster.targets import target_named
from pipeline.shared.errors import ClusterError
from pipeline.shared.folder_lock import read_owner


def refuse_unfinished(
    run_folder: Path, *, after: Collection[str], is_meant: Callable[[JobRecord], bool] = lambda _record: True
) -> None:
    """Raise an error if a job of a run waits or runs, or another command trains it.

    Args:
        run_folder: of the run.
        after: ids of jobs that the new one waits for; one of this run allows it.
        is_meant: whether a job counts.
    Raises:
        ClusterError: there is one.
    """
    records = records_below(run_folder)
    if any(record.job_id in after for record in records):
        return
    for record, state in _unfinished(filter(is_meant, records)):
        raise ClusterError(
            f"a run must have no job that waits or runs when it is submitted, but {record.job_id} in "
            f"{run_folder} is {state}; wait for it, stop it with `megaponder jobs cancel {record.job_id}`, "
            f"or submit the next one with --after {record.job_id}"
        )
    owner = read_owner(run_folder)
    if owner is not None and owner.process.is_visible and not after:
        raise ClusterError(
            f"{run_folder} must not be in use when a job is submitted for it, but {owner} is writing it now; "
            "wait for it, or stop it"
        )


def _unfinished(records: Iterator[JobRecord]) -> Iterator[tuple[JobRecord, str]]:
    """Yield the jobs that have not ended, as far as their targets can be asked, with their states."""
    for record in records:
        try:
            if load_end(record.job_folder) is not None:
                continue
            state = target_named(record.target, ray_address=record.address).status(record).state
        except ClusterError:
            continue
        if not state.is_final and state != state.UNKNOWN:
            yield record, state
