"""Time of submitting a run, and of its steps on a cluster and on this machine."""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cluster.job_record import records_below
from cluster.targets import JobTarget
from cluster.wait import wait_for
from pipeline.metrics import names
from pipeline.metrics.jsonl import METRICS_FILE, TRAINING, curve, read_events
from pipeline.shared.errors import ClusterError

# Share of the steps at the start of a run that fill caches and are not counted.
_WARM_UP_SHARE = 0.2
_MEGAPONDER = (sys.executable, "-m", "pipeline.cli")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Times of a finished run.

    Attributes:
        submit_seconds: until `submit` returned; 0 for a local run.
        step_seconds: median of the steps, without the first ones.
        num_steps: number of steps counted.
    """

    submit_seconds: float
    step_seconds: float
    num_steps: int


def measure_local(config: Path, settings: Sequence[str], folder: Path) -> Measured:
    """Run on this machine, as `megaponder train` does.

    Raises:
        ClusterError: the run has failed.
    """
    _run("train", config, settings, folder)
    return _measured(folder, submit_seconds=0.0)


def measure_submitted(target: JobTarget, config: Path, settings: Sequence[str], folder: Path) -> Measured:
    """Submit a run and wait for its end.

    Raises:
        ClusterError: the run was rejected or has failed.
    """
    started = time.monotonic()
    _run("submit", config, settings, folder)
    seconds = time.monotonic() - started
    code = wait_for(target, records_below(folder), start_limit_seconds=None, last_counts=True)
    if code != 0:
        raise ClusterError(f"the run in {folder} must end with 0, but ended with {code}")
    return _measured(folder, submit_seconds=seconds)


def _run(command: str, config: Path, settings: Sequence[str], folder: Path) -> None:
    words = [*_MEGAPONDER, command, "--config", str(config), *settings, f"output_dir={folder}"]
    finished = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if finished.returncode != 0:
        raise ClusterError(
            f"`megaponder {command}` must succeed to be timed, but ended with {finished.returncode}: "
            f"{finished.stderr.strip()[-2000:]}"
        )


def _measured(folder: Path, *, submit_seconds: float) -> Measured:
    points = curve(read_events(folder / METRICS_FILE), TRAINING, names.ITERATION_TIME)
    counted = [seconds for _, seconds in points][int(_WARM_UP_SHARE * len(points)) :]
    return Measured(submit_seconds=submit_seconds, step_seconds=median(counted), num_steps=len(counted))
