"""Trainings in which a rank has non-finite gradients, or a stop signal comes in an evaluation."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.checkpoint.state import read_train_state
from pipeline.checkpoint.tracker import latest_iteration, resolve_checkpoint
from pipeline.metrics.names import LM_LOSS_VALIDATION
from tests.support.commands import Finished, forked, megaponder
from tests.support.runs import data_hashes, losses, one_rank, written_events

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]

# The step in which the gradients of a rank are non-finite.
BAD_ITERATION = 2
NUM_ITERATIONS = 5
SETTINGS = (
    *("parallel.tensor=1", "parallel.data=2", "micro-batch-size=4", f"train-iters={NUM_ITERATIONS}"),
    *("checkpoint.interval=1", "evaluation.interval=2"),
)
JOBS = {
    "skip": ("1", "nan gradients"),
    "stop": ("1", "nan gradients", "divergence.on_nonfinite=stop"),
    "evaluation": ("0", "stop signal in evaluation"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad steps")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, recipe: Path) -> Path:
    command = megaponder(
        "train", "--config", str(recipe), f"output_dir={folder / 'uninterrupted'}", *SETTINGS
    )
    assert command.exit_code == 0, command.stderr
    return folder / "uninterrupted"


@pytest.fixture(scope="module")
def finished(folder: Path, recipe: Path) -> Iterator[dict[str, Finished]]:
    """Run all at the same time, because starting takes most of it."""
    with ExitStack() as stack:
        jobs = {
            name: stack.enter_context(
                forked(
                    *(rank, way, str(recipe), f"output_dir={folder / name}", *SETTINGS, *overrides),
                    module="tests.support.failing_training",
                )
            )
            for name, (rank, way, *overrides) in JOBS.items()
        }
        yield {name: job.finish() for name, job in jobs.items()}


def test_a_skipped_step_is_counted_and_the_run_continues(finished: dict[str, Finished], folder: Path) -> None:
    assert finished["skip"].exit_code == 0, finished["skip"].stderr
    state = read_train_state(resolve_checkpoint(folder / "skip" / "checkpoints"))
    assert (state.iteration, state.skipped_iterations, state.nan_iterations) == (NUM_ITERATIONS, 1, 1)
    assert state.skipped_in_a_row == 0
    # One line names the iteration and the ranks whose losses and gradients are non-finite.
    (line,) = [
        line for line in finished["skip"].stderr.splitlines() if f"iteration {BAD_ITERATION} is" in line
    ]
    assert re.findall(r"ranks (\[.*?\])", line) == ["[]", "[1]"]


def test_a_skipped_step_does_not_change_the_weights(
    finished: dict[str, Finished], folder: Path, uninterrupted: Path
) -> None:
    assert finished["skip"].exit_code == 0
    found, expected = losses(folder / "skip"), losses(uninterrupted)
    assert found[1] == expected[1]
    # The loss of the skipped step is finite; its update is missing in the next one.
    assert found[BAD_ITERATION + 1] != expected[BAD_ITERATION + 1]
    assert data_hashes(folder / "skip") == data_hashes(uninterrupted)


def test_no_checkpoint_is_made_of_a_skipped_iteration(finished: dict[str, Finished], folder: Path) -> None:
    assert finished["skip"].exit_code == 0
    saved = {path.name for path in (folder / "skip" / "checkpoints").glob("iter_*")}
    assert saved == {f"iter_{iteration:07d}" for iteration in (1, 3, 4, 5)}


def test_a_run_that_stops_reports_the_step_in_a_file(
    finished: dict[str, Finished], folder: Path, uninterrupted: Path
) -> None:
    assert finished["stop"].exit_code == 93
    assert "Traceback" not in finished["stop"].stderr
    report = json.loads((folder / "stop" / "divergence.json").read_text())
    assert report["iteration"] == BAD_ITERATION
    assert report["grad_norm"] == "nan"
    assert (report["ranks_with_bad_loss"], report["ranks_with_bad_gradients"]) == ([], [1])
    assert report["data_hash"] == data_hashes(uninterrupted)[BAD_ITERATION]
    assert report["last_checkpoint"] == latest_iteration(folder / "stop" / "checkpoints") == 1


def test_a_stop_signal_in_an_evaluation_saves_and_leaves_the_evaluation_to_the_next_start(
    finished: dict[str, Finished], folder: Path
) -> None:
    assert finished["evaluation"].exit_code == 75
    assert latest_iteration(folder / "evaluation" / "checkpoints") == 2
    assert _evaluations(folder / "evaluation") == []


@pytest.mark.parametrize("name", ["stop", "evaluation"])
def test_the_same_command_resumes_and_equals_an_uninterrupted_run(
    finished: dict[str, Finished], folder: Path, recipe: Path, uninterrupted: Path, name: str
) -> None:
    assert finished[name].exit_code in (75, 93)
    command = megaponder("train", "--config", str(recipe), f"output_dir={folder / name}", *SETTINGS)
    assert command.exit_code == 0, command.stderr
    assert losses(folder / name) == losses(uninterrupted)
    assert data_hashes(folder / name) == data_hashes(uninterrupted)
    assert _evaluations(folder / name) == _evaluations(uninterrupted)


def _evaluations(folder: Path) -> list[tuple[int, float]]:
    rows = written_events(folder, "validation")
    return [(row["iteration"], row[LM_LOSS_VALIDATION]) for row in rows]


def test_a_run_whose_time_has_passed_ends_as_planned(recipe: Path, folder: Path) -> None:
    # The time begins with the command, whose start takes longer.
    overrides = one_rank(folder / "planned", "exit-duration-in-mins=0.0001")
    command = megaponder("train", "--config", str(recipe), *overrides)
    assert command.exit_code == 0, command.stderr
    assert written_events(folder / "planned") == []
    assert latest_iteration(folder / "planned" / "checkpoints") is None
