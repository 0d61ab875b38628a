"""Which services metrics also go to (``metrics.sinks``), and under which ids the runs are known there.

Imports none of their packages.
"""

from importlib.util import find_spec
from pathlib import Path

from pipeline.config.errors import ConfigProblem
from pipeline.config.schema import RunConfig
from pipeline.shared.extras import how_to_install
from pipeline.shared.files import write_atomically

__all__ = ["missing_packages", "run_id_file", "store_run_id", "stored_run_id"]


def missing_packages(config: RunConfig) -> list[ConfigProblem]:
    """Return a problem for each sink whose package this Python does not have."""
    return [
        ConfigProblem(
            path="metrics.sinks",
            rule=f"must be installed where the run trains to send metrics to {sink}",
            value="not installed",
            cure=f"{how_to_install(sink)}, or remove it",
        )
        for sink in config.metrics.sinks
        if find_spec(sink) is None
    ]


def stored_run_id(folder: Path, sink: str) -> str | None:
    """Return under which id a service knows a run; None if it does not yet."""
    try:
        return (folder / run_id_file(sink)).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def store_run_id(folder: Path, sink: str, run_id: str) -> None:
    """Remember under which id a service knows a run, so that it is the same after it has resumed."""
    write_atomically(folder / run_id_file(sink), f"{run_id}\n")


def run_id_file(sink: str) -> str:
    """Return the name of the file with the id, in the folder of a run."""
    return f"{sink}_run_id.txt"
