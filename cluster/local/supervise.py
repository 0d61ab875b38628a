"""The process behind a local job: `python -m cluster.local.supervise ... -- ARGUMENTS OF THE RANKS`."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.job_files import JobEnd, next_attempt, rank_log, save_end
from cluster.job_record import JobState, find_record
from cluster.job_spec import LOGS_FOLDER
from cluster.local.files import Request, take_request
from cluster.local.target import LocalTarget
from pipeline.commands.shared import set_up_logging
from pipeline.ranks.launch import run_ranks
from pipeline.ranks.signals import StopFlag
from pipeline.shared.errors import ClusterError
from pipeline.shared.exit_codes import FINAL_CODES, ExitCode
from pipeline.shared.files import remove_temporaries

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5


def main() -> None:
    """Wait for other jobs, run the ranks, and write how the job ended into its folder."""
    settings = _parser().parse_args()
    set_up_logging()
    remove_temporaries(settings.job_folder)
    # While no ranks run, a signal is only noted, so that the end of the job is always written.
    with StopFlag() as stop:
        end = _supervise(settings, stop)
        save_end(settings.job_folder, end)
    sys.exit(end.exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.local.supervise", description=__doc__)
    parser.add_argument("--job-folder", type=Path, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--max-restarts", type=int, required=True)
    parser.add_argument("--stop-timeout", type=float, required=True, help="seconds for ranks to save")
    parser.add_argument("--after", action="append", default=[], help="job that must have succeeded")
    parser.add_argument("arguments", nargs="+", help="what follows the interpreter of each rank")
    return parser


def _supervise(settings: argparse.Namespace, stop: StopFlag) -> JobEnd:
    if take_request(settings.job_folder) == Request.CANCEL:
        return JobEnd(exit_code=ExitCode.REQUEUE, cancelled=True, reason="cancelled before it started")
    obstacle = _wait_for_jobs(settings.job_folder, settings.after, stop)
    if obstacle is not None:
        logger.error("%s", obstacle)
        return JobEnd(exit_code=ExitCode.CRASH, reason=obstacle)
    while True:
        code = ExitCode.REQUEUE if stop.received is not None else _run_ranks(settings)
        request = take_request(settings.job_folder)
        if request != Request.REQUEUE or code in FINAL_CODES:
            break
        logger.info("the ranks left with exit code %d and restart, as requested", code)
        stop.received = None
    is_cancelled = request == Request.CANCEL and code != ExitCode.DONE
    return JobEnd(exit_code=code, cancelled=is_cancelled, reason=_reason(code, is_cancelled=is_cancelled))


def _run_ranks(settings: argparse.Namespace) -> int:
    return run_ranks(
        settings.arguments,
        num_ranks=settings.ranks,
        stop_timeout_seconds=settings.stop_timeout,
        # Output must appear in the logs at once, although they are not a terminal.
        environment={"PYTHONUNBUFFERED": "1"},
        max_restarts=settings.max_restarts,
        open_logs=lambda: _new_logs(settings),
    )


def _new_logs(settings: argparse.Namespace) -> Sequence[Path]:
    attempt = next_attempt(settings.job_folder / LOGS_FOLDER)
    return [rank_log(attempt, rank) for rank in range(settings.ranks)]


def _wait_for_jobs(job_folder: Path, jobs: Sequence[str], stop: StopFlag) -> str | None:
    """Wait until other jobs have succeeded; return why this one cannot start, or None."""
    # runs / run / jobs / this job
    runs = job_folder.parents[2]
    target = LocalTarget()
    for job in jobs:
        try:
            record = find_record(runs, job)
            state = target.status(record).state
            while not state.is_final and state != JobState.UNKNOWN and stop.received is None:
                time.sleep(_POLL_SECONDS)
                state = target.status(record).state
        except ClusterError as error:
            return str(error)
        if state != JobState.DONE and stop.received is None:
            return f"{job} must succeed first, but is {state}"
    return None


def _reason(code: int, *, is_cancelled: bool) -> str:
    if is_cancelled:
        return "cancelled"
    if code == ExitCode.DONE:
        return ""
    if code == ExitCode.REQUEUE:
        return "stopped, or hung too often; `megaponder jobs requeue` resumes from the newest checkpoint"
    return f"the ranks left with exit code {code}: see `megaponder jobs logs`"


if __name__ == "__main__":
    main()
