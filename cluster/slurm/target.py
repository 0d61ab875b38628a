"""SLURM as a target of jobs."""

import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cluster.job_files import JobEnd, forget_end, load_end, newest_rank_logs, num_requeues
from cluster.job_record import JobRecord, JobState, JobStatus, save_record
from cluster.job_spec import LOGS_FOLDER, JobSpec
from cluster.slurm import client
from cluster.slurm.client import JobInfo
from cluster.slurm.places import LOG_NAME, SCRIPT_NAME, Place, places_of, previous_link
from cluster.slurm.render import render_script
from pipeline.shared.errors import ClusterError
from pipeline.shared.files import write_atomically, write_private

# What only the script of SLURM keeps in a job's folder.
_CANCELLED = "cancelled"
_STARTS = "starts"
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING")
_FAILED = ("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
_CANCELLED_STATES = ("CANCELLED", "PREEMPTED", "REVOKED")


class SlurmTarget:
    """Submits with sbatch and queries with scontrol; see `cluster.targets.JobTarget`."""

    def render(self, spec: JobSpec) -> str:
        """Return the commands as comments, and the script."""
        commands = [
            shlex.join(["sbatch", "--parsable", *options, str(spec.job_folder / SCRIPT_NAME), *arguments])
            for options, arguments in _calls(spec, before="<job before>")
        ]
        return "".join(f"# {command}\n" for command in commands) + render_script(spec)

    def submit(self, spec: JobSpec) -> tuple[JobRecord, ...]:
        """Submit a job, the links of a chain, or the jobs of an array."""
        places = places_of(spec)
        script = spec.job_folder / SCRIPT_NAME
        write_private(script, render_script(spec))
        handles: list[str] = []
        try:
            for place in places:
                (place.job_folder / LOGS_FOLDER).mkdir(parents=True, exist_ok=True)
            for handle in _submit_all(spec, script):
                handles.append(handle)
        except BaseException:
            for handle in handles:
                with suppress(ClusterError):
                    client.cancel_job(handle)
            for place in places:
                shutil.rmtree(place.job_folder, ignore_errors=True)
                _remove_if_empty(place.job_folder.parent, place.run_folder)
            raise
        if spec.sweep:
            handles = [f"{handles[0]}_{index}" for index in range(len(places))]
        records = [
            _record(spec, place, handle, link)
            for link, (place, handle) in enumerate(zip(places, handles, strict=True), start=1)
        ]
        for record in records:
            save_record(record)
        return tuple(records)

    def status(self, record: JobRecord) -> JobStatus:
        """Query the controller, or the job's folder if the controller no longer knows the job."""
        info = client.show_job(record.handle)
        end = load_end(record.job_folder)
        state, reason = _state_of(record, info, end)
        code = end.exit_code if end else None
        if code is None and info is not None and _is_over(info):
            code = info.exit_code or (0 if state == JobState.DONE else None)
        return JobStatus(
            state=state,
            reason=reason,
            exit_code=code,
            requeues=num_requeues(record.log_folder),
            nodes=(info.nodes,) if info is not None and info.nodes else (),
        )

    def logs(self, record: JobRecord) -> tuple[Path, ...]:
        """Return the logs of the newest attempt; before there is one, that of the script.

        For a link of a chain that has not started, return those of the link before it.
        """
        found = newest_rank_logs(record.log_folder) or tuple(record.job_folder.glob(LOG_NAME))
        before = previous_link(record.job_folder)
        if found or before is None:
            return found
        return self.logs(record.model_copy(update={"job_folder": before}))

    def cancel(self, record: JobRecord) -> None:
        """Let the ranks of a running job save and leave; remove a waiting one from the queue."""
        info = client.show_job(record.handle)
        if info is None or _is_over(info):
            return
        write_atomically(record.job_folder / _CANCELLED, b"")
        if info.state == "RUNNING":
            client.signal_ranks(record.handle)
        else:
            client.cancel_job(record.handle)

    def requeue(self, record: JobRecord) -> JobRecord:
        """Let the ranks of a running job save, so that its script requeues it; restart one that has ended."""
        info = client.show_job(record.handle)
        if info is not None and info.state == "RUNNING":
            client.signal_ranks(record.handle)
            return record
        if info is not None and not _is_over(info):
            return record
        forget_end(record.job_folder)
        for name in (_CANCELLED, _STARTS):
            (record.job_folder / name).unlink(missing_ok=True)
        if info is not None and client.start_again(record.handle):
            return record
        return self._submit_again(record)

    def _submit_again(self, record: JobRecord) -> JobRecord:
        """Submit the same script again, because SLURM no longer knows the job."""
        script = record.job_folder / SCRIPT_NAME
        if not script.exists() or "_" in record.handle:
            raise ClusterError(
                f"SLURM must still know {record.job_id}, which is part of a sweep or a chain, but does "
                "not; submit the run again, which resumes from its newest checkpoint"
            )
        again = record.model_copy(
            update={"handle": client.submit_script(script), "submitted_at": datetime.now(UTC)}
        )
        save_record(again)
        return again


def _calls(spec: JobSpec, *, before: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the options and arguments of each call of sbatch."""
    yield [], ["1"] if spec.chain > 1 else []
    for link in range(2, spec.chain + 1):
        yield [f"--dependency=afterany:{before}"], [str(link)]


def _submit_all(spec: JobSpec, script: Path) -> Iterator[str]:
    handle = ""
    for options, arguments in _calls(spec, before=""):
        dependency = f"afterany:{handle}" if options else None
        handle = client.submit_script(script, *arguments, dependency=dependency)
        yield handle


def _record(spec: JobSpec, place: Place, handle: str, link: int) -> JobRecord:
    return JobRecord(
        target="slurm",
        handle=handle,
        name=place.name if spec.chain == 1 else f"{place.name} ({link} of {spec.chain})",
        run_folder=place.run_folder,
        job_folder=place.job_folder,
        submitted_at=datetime.now(UTC),
        command=(*spec.command, *place.overrides),
    )


def _state_of(record: JobRecord, info: JobInfo | None, end: JobEnd | None) -> tuple[JobState, str]:
    """Return the state of a job and its reason, from the controller and from what the job has written."""
    if info is not None and not _is_over(info):
        return (JobState.QUEUED if info.state in _WAITING else JobState.RUNNING), info.reason
    if end is not None and end.state != JobState.FAILED:
        return end.state, end.reason
    # Also with SLURM's own commands, and before the script has started.
    if (record.job_folder / _CANCELLED).exists() or _is_cancelled(info):
        return JobState.CANCELLED, end.reason if end else ""
    if end is not None:
        return end.state, end.reason
    if info is None:
        return JobState.UNKNOWN, "SLURM no longer knows the job, which ended before it could write why"
    # It has ended since its file was read.
    if info.state == "COMPLETED":
        return JobState.DONE, ""
    return JobState.FAILED, f"{info.state}: {info.reason}" if info.reason else info.state


def _is_over(info: JobInfo) -> bool:
    return info.state == "COMPLETED" or info.state.startswith((*_FAILED, *_CANCELLED_STATES))


def _is_cancelled(info: JobInfo | None) -> bool:
    return info is not None and info.state.startswith(_CANCELLED_STATES)


def _remove_if_empty(*folders: Path) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
