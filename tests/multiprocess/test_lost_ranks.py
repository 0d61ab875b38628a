"""A rank that dies or hangs in the middle of a pass ends the whole job and is named."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.commands import Finished, Running, forked
from tests.support.failing_training import EXIT_CODE
from tests.support.runs import written_events

pytestmark = pytest.mark.multiprocess

# Ranks of a busy machine start seconds apart, and the first waits for the last.
TIMEOUT_SECONDS = 15
# A rank that has died is not waited for, so this limit plays no part.
VERY_LONG = 3600
ON_STAGES = ("parallel.tensor=1", "parallel.pipeline=2", "training.micro_batch_size=4")
JOBS = {
    "stage 1 dies": ("1", "dies", *ON_STAGES, f"parallel.timeout_seconds={VERY_LONG}"),
    "tensor rank 0 dies": ("0", "dies", f"parallel.timeout_seconds={VERY_LONG}"),
    "stage 0 hangs": (
        *("0", "hangs", *ON_STAGES),
        *(f"parallel.timeout_seconds={TIMEOUT_SECONDS}", "parallel.watchdog_seconds=0"),
    ),
    "stage 0 hangs, watched": (
        *("0", "hangs", *ON_STAGES),
        *(f"parallel.timeout_seconds={VERY_LONG}", f"parallel.watchdog_seconds={TIMEOUT_SECONDS}"),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def jobs(recipe: Path, folder: Path) -> Iterator[dict[str, Running]]:
    """All run at the same time, because they mostly wait."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                forked(
                    *_arguments(recipe, folder / name, *arguments), module="tests.support.failing_training"
                )
            )
            for name, arguments in JOBS.items()
        }


@pytest.fixture(scope="module")
def finished(jobs: dict[str, Running]) -> dict[str, Finished]:
    """The results of the jobs, none of which has left a process."""
    return {name: job.finish() for name, job in jobs.items()}


def _arguments(recipe: Path, output: Path, rank: str, way: str, *overrides: str) -> list[str]:
    return [rank, way, str(recipe), f"output_dir={output}", *overrides]


@pytest.mark.parametrize("name", JOBS)
def test_the_rank_failed_in_the_second_iteration(
    finished: dict[str, Finished], folder: Path, name: str
) -> None:
    assert finished[name]
    assert [event["iteration"] for event in written_events(folder / name)] == [1]


@pytest.mark.parametrize(("name", "rank"), [("stage 1 dies", 1), ("tensor rank 0 dies", 0)])
def test_a_rank_that_dies_is_named_and_ends_the_job(
    finished: dict[str, Finished], name: str, rank: int
) -> None:
    assert finished[name].exit_code == EXIT_CODE
    assert re.search(rf"rank {rank} of 2 .*\b{EXIT_CODE}\b", finished[name].stderr)


def test_the_other_rank_names_the_one_that_has_died(finished: dict[str, Finished]) -> None:
    assert re.search(r"LostRanksError: .*rank 0 of 2 .*ranks \[1\]", finished["stage 1 dies"].stderr)


def test_a_rank_that_hangs_is_named_and_ends_the_job(finished: dict[str, Finished]) -> None:
    hung = finished["stage 0 hangs"]
    assert hung.exit_code == 75
    assert re.search(r"LostRanksError: .*rank 1 of 2 .*ranks \[0\]", hung.stderr)


def test_the_watchdog_names_a_rank_that_hangs_and_asks_for_a_requeue(
    finished: dict[str, Finished],
) -> None:
    watched = finished["stage 0 hangs, watched"]
    assert watched.exit_code == 75
    assert re.search(r"rank 0 \(a micro-batch of iteration 2, ", watched.stderr)


@pytest.mark.parametrize(("rank", "place"), [(0, "failing_training.py"), (1, "p2p_communication.py")])
def test_the_watchdog_writes_what_every_rank_was_doing(
    finished: dict[str, Finished], folder: Path, rank: int, place: str
) -> None:
    assert finished
    stacks = folder / "stage 0 hangs, watched" / "stacks"
    assert place in (stacks / f"rank_{rank:05d}.txt").read_text()
