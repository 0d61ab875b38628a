"""Jobs as processes of this machine.

Each job is a supervisor in a session of its own, which outlives the terminal, and the ranks that it starts
(`pipeline.ranks.launch`). Its folder contains, in addition to what `cluster.job_files` describes::

    job.sh                 what was started
    process.json           the supervisor
    logs/supervisor.log    output of the supervisor and the setup lines
"""

import contextlib
import shlex
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psutil

from cluster.job_files import forget_end, load_end, newest_rank_logs, num_attempts, num_requeues
from cluster.job_record import JobRecord, JobState, JobStatus, find_record, save_record
from cluster.job_spec import JobSpec
from cluster.local.files import (
    SCRIPT_NAME,
    SUPERVISOR_LOG,
    Request,
    Supervisor,
    leave_request,
    load_supervisor,
    save_supervisor,
    take_request,
)
from cluster.spec_checks import check_spec
from pipeline.shared.errors import ClusterError
from pipeline.shared.files import write_private
from pipeline.shared.folder_lock import folder_lock
from pipeline.shared.python_start import python_module

_LEAVE_SECONDS = 30.0
_NO_RANKS = "starting, or waiting for the jobs before it"


class LocalTarget:
    """Implements `cluster.targets.JobTarget` with processes of this machine."""

    def render(self, spec: JobSpec) -> str:
        """Return the script that would be started."""
        check_spec(spec)
        _refuse(spec)
        return _script(spec)

    def submit(self, spec: JobSpec) -> tuple[JobRecord, ...]:
        """Start a job in the background."""
        content = self.render(spec)
        for job in spec.dependencies:
            find_record(spec.run_folder.parent, job)
        write_private(spec.job_folder / SCRIPT_NAME, content)
        record = JobRecord(
            target="local",
            handle=spec.job_folder.name,
            name=spec.name,
            run_folder=spec.run_folder,
            job_folder=spec.job_folder,
            submitted_at=datetime.now(UTC),
            command=spec.command,
        )
        _start(spec.job_folder, spec.log_folder)
        save_record(record)
        return (record,)

    def status(self, record: JobRecord) -> JobStatus:
        """Return the status of a job, from its folder and its process."""
        has_started = num_attempts(record.log_folder) > 0
        state, reason, exit_code = _state(record, has_started=has_started)
        host = load_supervisor(record.job_folder).host
        return JobStatus(
            state=state,
            reason=reason,
            exit_code=exit_code,
            requeues=num_requeues(record.log_folder),
            nodes=(host,) if has_started else (),
        )

    def logs(self, record: JobRecord) -> tuple[Path, ...]:
        """Return the logs of the newest attempt."""
        return newest_rank_logs(record.log_folder)

    def cancel(self, record: JobRecord) -> None:
        """Let the ranks save and leave, for good."""
        process = _process_here(record.job_folder)
        if process is not None and load_end(record.job_folder) is None:
            _request_stop(record.job_folder, process, Request.CANCEL)

    def requeue(self, record: JobRecord) -> JobRecord:
        """Let the ranks save and leave, and restart them."""
        with folder_lock(record.job_folder, "megaponder jobs requeue"):
            return self._requeue(record)

    def _requeue(self, record: JobRecord) -> JobRecord:
        process = _process_here(record.job_folder)
        if process is not None and load_end(record.job_folder) is None:
            _request_stop(record.job_folder, process, Request.REQUEUE)
            return record
        if process is not None:
            # It has written how the job ended and is about to leave.
            _wait_until_left(record, process)
        forget_end(record.job_folder)
        take_request(record.job_folder)
        _start(record.job_folder, record.log_folder)
        return record


def _refuse(spec: JobSpec) -> None:
    """Refuse a job that needs a cluster."""
    found = [
        (spec.container is not None, "submit.container"),
        (spec.resources.nodes > 1, "submit.nodes above 1"),
        (spec.chain > 1, "submit.chain"),
        (bool(spec.sweep), "a hyper-parameter sweep"),
    ]
    requested = [name for is_requested, name in found if is_requested]
    if requested:
        raise ClusterError(
            f"a local job must be processes of this machine, but {' and '.join(requested)} is requested; "
            "remove it, or submit to slurm or ray"
        )


def _script(spec: JobSpec) -> str:
    """Return the script that a local job runs, as a pure function of the job.

    The ranks' interpreter, the first word of the command, also runs the supervisor.
    """
    ranks, restarts = spec.resources.num_ranks, spec.requeue.max_requeues
    lines = [
        "#!/bin/bash",
        f"# {spec.name}: {ranks} rank(s) on this machine, restarted up to {restarts} times.",
        "set -e",
        f"cd {shlex.quote(str(spec.working_directory))}",
        *(f"export {name}={shlex.quote(value)}" for name, value in spec.environment),
        *spec.setup,
        "exec " + " \\\n    ".join(_supervisor(spec)),
    ]
    return "\n".join(lines) + "\n"


def _supervisor(spec: JobSpec) -> list[str]:
    python, *arguments = spec.command
    return [
        f"{shlex.quote(python)} {shlex.join(python_module('cluster.local.supervise'))}",
        f"--job-folder {shlex.quote(str(spec.job_folder))}",
        f"--ranks {spec.resources.num_ranks}",
        f"--max-restarts {spec.requeue.max_requeues}",
        f"--stop-timeout {spec.requeue.signal_lead_seconds}",
        *(f"--after {shlex.quote(job)}" for job in spec.dependencies),
        f"-- {shlex.join(arguments)}",
    ]


def _start(job_folder: Path, log_folder: Path) -> None:
    log_folder.mkdir(exist_ok=True)
    with (log_folder / SUPERVISOR_LOG).open("ab") as log:
        started = subprocess.Popen(
            ["/bin/bash", str(job_folder / SCRIPT_NAME)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_ignore_stop_signals,
        )
    save_supervisor(job_folder, Supervisor.of_process(started.pid))


def _ignore_stop_signals() -> None:
    # Until the supervisor handles them: it reads the request, which is in a file, when it has started.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _state(record: JobRecord, *, has_started: bool) -> tuple[JobState, str, int | None]:
    # The process is checked first: it writes how the job ended before it leaves.
    supervisor = load_supervisor(record.job_folder)
    is_running = supervisor.is_here and supervisor.process() is not None
    end = load_end(record.job_folder)
    if end is not None:
        return end.state, end.reason, end.exit_code
    if not supervisor.is_here:
        return JobState.UNKNOWN, f"it runs on {supervisor.host}: run the command there", None
    if is_running:
        return (JobState.RUNNING, "", None) if has_started else (JobState.QUEUED, _NO_RANKS, None)
    return (
        JobState.FAILED,
        f"its supervisor was killed, or could not start: see {record.log_folder / SUPERVISOR_LOG}; "
        "`megaponder jobs requeue` starts it again",
        None,
    )


def _process_here(folder: Path) -> psutil.Process | None:
    """Return the supervisor while it runs.

    Raises:
        ClusterError: it runs on another machine.
    """
    supervisor = load_supervisor(folder)
    if not supervisor.is_here:
        raise ClusterError(
            f"a local job must be stopped where it runs, which is {supervisor.host}; run the command there"
        )
    return supervisor.process()


def _wait_until_left(record: JobRecord, process: psutil.Process) -> None:
    try:
        process.wait(_LEAVE_SECONDS)
    except psutil.TimeoutExpired as error:
        raise ClusterError(
            f"the supervisor of {record.job_id} must leave within {_LEAVE_SECONDS:.0f} s of its job's end, "
            f"but process {process.pid} still runs; see {record.log_folder / SUPERVISOR_LOG}, or kill it"
        ) from error


def _request_stop(folder: Path, process: psutil.Process, request: Request) -> None:
    leave_request(folder, request)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGTERM)
