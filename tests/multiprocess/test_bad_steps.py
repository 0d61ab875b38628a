"""A rank whose gradients are not finite, and a stop in the middle of an evaluation: whole trainings."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.checkpoint.state import read_train_state
from pipeline.checkpoint.tracker import latest_iteration, resolve_checkpoint
from pipeline.metrics.names import LM_LOSS_VALIDATION
from tests.support.commands import Finished, megaponder, started
from tests.support.corpus import prepare_here, train_small_tokenizer, write_corpus
from tests.support.runs import data_hashes, losses, write_recipe, written_events

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]

# The step in which the rank fails.
BAD_ITERATION = 2
NUM_ITERATIONS = 5
SETTINGS = (
    *("parallel.tensor=1", "parallel.data=2", "micro-batch-size=4", f"train-iters={NUM_ITERATIONS}"),
    *("checkpoint.interval=1", "evaluation.interval=2"),
)
JOBS = {
    "skip": ("1", "nan gradients"),
    "stop": ("1", "nan gradients", "divergence.on_nonfinite=stop"),
    "evaluation": ("0", "told to stop in evaluation"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad steps")


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Path:
    source = write_corpus(folder / "text")
    tokenizer = train_small_tokenizer(source, folder / "tokenizer.model")
    prepare_here(source, tokenizer, folder / "data")
    return write_recipe(folder / "recipe.yaml", data=folder / "data")


@pytest.fixture(scope="module")
def undisturbed(folder: Path, recipe: Path) -> Path:
    command = megaponder("train", "--config", str(recipe), f"output_dir={folder / 'whole'}", *SETTINGS)
    assert command.exit_code == 0, command.stderr
    return folder / "whole"


@pytest.fixture(scope="module")
def finished(folder: Path, recipe: Path) -> Iterator[dict[str, Finished]]:
    """All under way at the same time, because the start is most of it."""
    with ExitStack() as stack:
        jobs = {
            name: stack.enter_context(
                started(
                    [
                        *("-m", "tests.support.failing_training", rank, way, str(recipe)),
                        *(f"output_dir={folder / name}", *SETTINGS, *overrides),
                    ]
                )
            )
            for name, (rank, way, *overrides) in JOBS.items()
        }
        yield {name: job.finish() for name, job in jobs.items()}


def test_a_step_that_is_left_out_is_counted_and_the_run_goes_on(
    finished: dict[str, Finished], folder: Path
) -> None:
    assert finished["skip"].exit_code == 0, finished["skip"].stderr
    state = read_train_state(resolve_checkpoint(folder / "skip" / "checkpoints"))
    assert (state.iteration, state.skipped_iterations, state.nan_iterations) == (NUM_ITERATIONS, 1, 1)
    assert state.skipped_in_a_row == 0
    assert f"iteration {BAD_ITERATION} is left out" in finished["skip"].stderr
    assert "gradients of ranks [1] not finite" in finished["skip"].stderr


def test_the_weights_stay_as_they_were_before_a_step_that_is_left_out(
    finished: dict[str, Finished], folder: Path, undisturbed: Path
) -> None:
    assert finished["skip"].exit_code == 0
    found, expected = losses(folder / "skip"), losses(undisturbed)
    assert found[1] == expected[1]
    # It had a finite loss; what it would have learned is missing afterwards.
    assert found[BAD_ITERATION + 1] != expected[BAD_ITERATION + 1]
    assert data_hashes(folder / "skip") == data_hashes(undisturbed)


def test_no_checkpoint_is_made_of_an_iteration_that_is_left_out(
    finished: dict[str, Finished], folder: Path
) -> None:
    assert finished["skip"].exit_code == 0
    saved = {path.name for path in (folder / "skip" / "checkpoints").glob("iter_*")}
    assert saved == {f"iter_{iteration:07d}" for iteration in (1, 3, 4, 5)}


def test_a_run_that_is_to_stop_says_in_a_file_what_happened(
    finished: dict[str, Finished], folder: Path, undisturbed: Path
) -> None:
    assert finished["stop"].exit_code == 93
    assert "Traceback" not in finished["stop"].stderr
    report = json.loads((folder / "stop" / "divergence.json").read_text())
    assert report["iteration"] == BAD_ITERATION
    assert report["grad_norm"] == "nan"
    assert (report["ranks_with_bad_loss"], report["ranks_with_bad_gradients"]) == ([], [1])
    assert report["data_hash"] == data_hashes(undisturbed)[BAD_ITERATION]
    assert report["last_checkpoint"] == latest_iteration(folder / "stop" / "checkpoints") == 1


@pytest.mark.parametrize("name", ["stop", "evaluation"])
def test_the_same_command_ends_as_if_nothing_had_happened(
    finished: dict[str, Finished], folder: Path, recipe: Path, undisturbed: Path, name: str
) -> None:
    assert finished[name].exit_code in (75, 93)
    command = megaponder("train", "--config", str(recipe), f"output_dir={folder / name}", *SETTINGS)
    assert command.exit_code == 0, command.stderr
    assert losses(folder / name) == losses(undisturbed)
    assert data_hashes(folder / name) == data_hashes(undisturbed)
    assert _evaluations(folder / name) == _evaluations(undisturbed)


def test_a_stop_in_an_evaluation_leaves_it_to_the_next_start(
    finished: dict[str, Finished], folder: Path
) -> None:
    assert finished["evaluation"].exit_code == 75
    assert re.search(r"at iteration 2: .*iteration 2 saved", finished["evaluation"].stderr)


def _evaluations(folder: Path) -> list[tuple[int, float]]:
    rows = written_events(folder, "validation")
    return [(row["iteration"], row[LM_LOSS_VALIDATION]) for row in rows]


def test_a_run_whose_time_is_over_leaves_as_planned(recipe: Path, folder: Path) -> None:
    overrides = (f"output_dir={folder / 'planned'}", *SETTINGS, "exit-duration-in-mins=0.0001")
    command = megaponder("train", "--config", str(recipe), *overrides)
    assert command.exit_code == 0, command.stderr
    # The time begins with the command, which takes longer to start.
    message = "training.exit_duration_in_mins is over at iteration 0; nothing to save yet"
    assert message in command.stderr
    assert latest_iteration(folder / "planned" / "checkpoints") is None
