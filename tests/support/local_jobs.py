"""Local jobs whose ranks are a few lines of Python, and that end with the test."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.job_record import JobRecord, JobState, JobStatus, new_job_folder
from cluster.job_spec import JobSpec, RequeuePolicy, Resources
from cluster.local.target import LocalTarget
from tests.support.commands import COMMAND, MARK, REPOSITORY, TIMEOUT_SECONDS, processes_with, wait_until

# Enough for every process of these jobs to start on a busy machine.
SECONDS = 60.0
# What a rank may use: `starts` counts its starts, and `told` is true once it was told to stop.
PRELUDE = """
import os, pathlib, signal, sys, time
rank = int(os.environ["RANK"])
folder = pathlib.Path(sys.argv[1])
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
starts = len(list(folder.glob(f"rank{rank}_*")))
(folder / f"rank{rank}_{starts}").touch()
print("start", starts, "of rank", rank)
def wait_to_be_told():
    while not told:
        time.sleep(0.02)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalJobs:
    """The jobs of a folder of runs."""

    runs: Path
    mark: str
    target: LocalTarget = field(default_factory=LocalTarget)

    def spec(
        self,
        body: str,
        *,
        name: str = "run",
        ranks: int = 1,
        requeues: int = 3,
        after: tuple[str, ...] = (),
    ) -> JobSpec:
        """Describe a job whose ranks run a few lines after `PRELUDE`, and create its folder."""
        run_folder = self.runs / name
        spec = JobSpec(
            name=name,
            command=(sys.executable, "-c", PRELUDE + body, str(run_folder)),
            run_folder=run_folder,
            job_folder=new_job_folder(run_folder, "train"),
            working_directory=Path.cwd(),
            resources=Resources(ranks_per_node=ranks),
            dependencies=after,
            requeue=RequeuePolicy(max_requeues=requeues, signal_lead_seconds=20),
        )
        spec.log_folder.mkdir(parents=True)
        return spec

    def start(
        self, body: str, *, name: str = "run", ranks: int = 1, after: tuple[str, ...] = ()
    ) -> JobRecord:
        """Submit such a job."""
        (record,) = self.target.submit(self.spec(body, name=name, ranks=ranks, after=after))
        return record

    def wait_for(self, record: JobRecord, state: JobState) -> JobStatus:
        """Wait until a job is in a state."""
        end = time.monotonic() + SECONDS
        while (status := self.target.status(record)).state != state:
            assert not status.state.is_final, f"not {state}, but {status}"
            assert time.monotonic() < end, f"not {state} within {SECONDS} seconds, but {status}"
            time.sleep(0.02)
        return status

    def wait_for_text(self, record: JobRecord, text: str, *, rank: int = 0) -> None:
        """Wait until a rank has printed a text in its newest start."""
        wait_until(
            lambda: any(text in file.read_text() for file in self.target.logs(record)[rank : rank + 1]),
            seconds=SECONDS,
            otherwise=text,
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `megaponder <words>`, whose jobs keep running."""
        return subprocess.run(
            [sys.executable, *COMMAND, *words],
            env={**os.environ, "COLUMNS": "200"},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    def nothing_is_left(self) -> bool:
        """Wait until no process of any job runs."""
        wait_until(lambda: not processes_with(self.mark), seconds=SECONDS)
        return True


@contextmanager
def local_jobs(runs: Path) -> Iterator[LocalJobs]:
    """Yield jobs that are killed at the end of the block."""
    mark = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, MARK, mark)
        try:
            yield LocalJobs(runs=runs, mark=mark)
        finally:
            for process in processes_with(mark):
                if process.pid != os.getpid():
                    process.kill()
