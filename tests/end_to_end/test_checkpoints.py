"""Commands and their checkpoints: saved in the background, damaged, and used as initial weights."""

import os
import re
import shutil
from pathlib import Path

import pytest

from pipeline.checkpoint.state import read_train_state
from tests.support.commands import megaponder
from tests.support.runs import NUM_ITERATIONS, losses, one_rank, written_events
from tests.support.tiny_run import TrainedRun

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

NEWEST = f"iter_{NUM_ITERATIONS:07d}"


@pytest.fixture(scope="module")
def background(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """The same run as `trained`, saved in the background after every four iterations."""
    folder = tmp_path_factory.mktemp("background") / "run"
    settings = ("checkpoint.async_save=true", "checkpoint.interval=4", "checkpoint.keep_last=2")
    command = megaponder("train", "--config", str(recipe), f"output_dir={folder}", *settings)
    assert command.exit_code == 0, command.stderr
    return TrainedRun(folder=folder, command=command)


@pytest.fixture
def damaged(background: TrainedRun, tmp_path: Path) -> Path:
    """A copy of that run whose newest checkpoint is truncated."""
    folder = tmp_path / "run"
    shutil.copytree(background.folder, folder)
    tensors = folder / "checkpoints" / NEWEST / "__1_0.distcp"
    os.truncate(tensors, tensors.stat().st_size // 2)
    return folder


def test_saves_in_the_background_change_nothing(trained: TrainedRun, background: TrainedRun) -> None:
    assert losses(background.folder) == losses(trained.folder)
    command = megaponder("checkpoint", "diff", str(trained.checkpoints), str(background.checkpoints))
    assert command.exit_code == 0, command.stdout
    folders = sorted(path.name for path in background.checkpoints.glob("iter_*"))
    assert folders == ["iter_0000012", NEWEST]


def test_the_cost_of_a_checkpoint_is_reported_before_and_after(background: TrainedRun) -> None:
    log = background.command.stderr
    # Estimated at the start, measured when it is copied and when it is written.
    assert log.index("every checkpoint: about ") < log.index("iteration 4: copied in")
    assert re.search(r"iter_0000004: \d[\d.]* [KM]iB", log)


def test_a_checkpoint_records_the_best_heldout_loss(trained: TrainedRun) -> None:
    state = read_train_state(trained.checkpoints / NEWEST)
    (measured,) = written_events(trained.folder, "validation")
    assert state.best_heldout_loss == measured["lm loss validation"]
    assert state.best_heldout_iteration == NUM_ITERATIONS


def test_a_run_with_a_truncated_checkpoint_resumes_from_the_previous_one(
    trained: TrainedRun, recipe: Path, damaged: Path
) -> None:
    command = megaponder("train", "--config", str(recipe), f"output_dir={damaged}", "checkpoint.interval=4")
    assert command.exit_code == 0, command.stderr
    for part in (damaged / "checkpoints" / NEWEST, "__1_0.distcp"):
        assert str(part) in command.stderr
    # Iterations 13 and 14 were repeated; `losses` compares them.
    assert [event["iteration"] for event in written_events(damaged)[NUM_ITERATIONS:]] == [13, 14]
    assert losses(damaged) == losses(trained.folder)
    arguments = ("diff", str(trained.checkpoints), str(damaged / "checkpoints"))
    assert megaponder("checkpoint", *arguments).exit_code == 0


def test_without_an_intact_checkpoint_a_run_ends_instead_of_starting_from_scratch(
    recipe: Path, damaged: Path
) -> None:
    (damaged / "checkpoints" / "iter_0000012" / "common.pt").unlink()
    before = written_events(damaged)
    command = megaponder("train", "--config", str(recipe), *one_rank(damaged))
    assert command.exit_code == 93, command.stderr
    assert str(damaged / "checkpoints") in command.stderr
    assert written_events(damaged) == before


def test_an_evaluation_refuses_a_damaged_checkpoint(damaged: Path) -> None:
    command = megaponder("eval", str(damaged / "checkpoints"))
    assert command.exit_code == 93, command.stderr
    assert "__1_0.distcp" in command.stderr
    assert "Traceback" not in command.stderr


def test_a_run_starts_from_the_weights_of_another(trained: TrainedRun, recipe: Path, tmp_path: Path) -> None:
    start = (f"init_from.path={trained.checkpoints}", "init_from.method=ponderlm3", "train-iters=3")
    settings = one_rank(tmp_path / "run", *start)
    command = megaponder("train", "--config", str(recipe), *settings)
    assert command.exit_code == 0, command.stderr
    assert str(trained.checkpoints / NEWEST) in command.stderr
    first = losses(tmp_path / "run")
    trained_losses = losses(trained.folder)
    assert list(first) == [1, 2, 3]
    assert first[1] < trained_losses[1] - 0.3


def test_checkpoints_are_also_due_by_the_clock(recipe: Path, tmp_path: Path) -> None:
    settings = (f"output_dir={tmp_path}", "training.exit_interval=3", "checkpoint.minutes=1.0e-9")
    settings += ("checkpoint.keep_last=null", "checkpoint.keep_every=null")
    command = megaponder("train", "--config", str(recipe), *settings)

    assert command.exit_code == 0, command.stderr
    assert len(list((tmp_path / "checkpoints").glob("iter_*"))) == 3
