"""A run that is interrupted, loses a rank, and is started again equals one that never was."""

import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.checkpoint.tracker import latest_iteration
from tests.end_to_end.conftest import TrainedRun
from tests.support.commands import (
    COMMAND,
    Finished,
    Running,
    megaponder,
    megaponder_under_torchrun,
    started,
    wait_until,
)
from tests.support.runs import NUM_ITERATIONS, data_hashes, has_trained, losses

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """A run that was ended before its last iteration.

    Attributes:
        folder: of the run.
        copy: the folder as it was then.
        command: how the command ended.
        saved: iteration of the newest checkpoint.
    """

    folder: Path
    copy: Path
    command: Finished
    saved: int


def train_until(recipe: Path, folder: Path, iteration: int) -> Iterator[Running]:
    arguments = [*COMMAND, "train", "--config", str(recipe), f"output_dir={folder}"]
    with started(arguments) as command:
        wait_until(lambda: has_trained(folder, iteration) or command.process.poll() is not None)
        assert command.process.poll() is None, command.stderr.read_text()
        yield command


def interrupted_run(folder: Path, command: Running) -> Interrupted:
    finished = command.finish()
    saved = latest_iteration(folder / "checkpoints")
    assert saved is not None, finished.stderr
    copy = folder.with_name(f"copy_{saved}_{finished.exit_code}")
    shutil.copytree(folder, copy)
    return Interrupted(folder=folder, copy=copy, command=finished, saved=saved)


@pytest.fixture(scope="module")
def stopped(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """Ctrl-C after the second iteration."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    for command in train_until(recipe, folder, 2):
        command.process.send_signal(signal.SIGINT)
        interrupted = interrupted_run(folder, command)
    return interrupted


@pytest.fixture(scope="module")
def killed(recipe: Path, stopped: Interrupted) -> Interrupted:
    """Started again and, two iterations later, without its second rank."""
    for command in train_until(recipe, stopped.folder, stopped.saved + 2):
        command.rank(1).send_signal(signal.SIGKILL)
        interrupted = interrupted_run(stopped.folder, command)
    return interrupted


def test_ctrl_c_saves_and_asks_to_be_started_again(stopped: Interrupted) -> None:
    assert stopped.command.exit_code == 75
    assert 2 <= stopped.saved < NUM_ITERATIONS
    assert re.search(rf"at iteration {stopped.saved}: .*{stopped.saved} saved", stopped.command.stderr)
    assert "Traceback" not in stopped.command.stderr
    assert {path.name for path in (stopped.copy / "checkpoints").iterdir()} == {
        f"iter_{stopped.saved:07d}",
        "latest_checkpointed_iteration.txt",
    }


def test_a_killed_rank_is_named_and_takes_the_others_with_it(killed: Interrupted) -> None:
    assert killed.command.exit_code == 128 + signal.SIGKILL
    assert "rank 1 of 2 failed with exit code 137" in killed.command.stderr
    assert f"resumed from iteration {killed.saved}" in killed.command.stderr
    assert not list(killed.copy.rglob("*.partial"))


def test_a_run_with_interruptions_equals_one_without(
    trained: TrainedRun, recipe: Path, stopped: Interrupted, killed: Interrupted
) -> None:
    assert killed.saved == stopped.saved
    command = megaponder("train", "--config", str(recipe), f"output_dir={killed.folder}")
    assert command.exit_code == 0, command.stderr
    # Bit for bit: weights, moments, schedule and order of the data all went on where they were.
    assert losses(killed.folder) == losses(trained.folder)
    assert data_hashes(killed.folder) == data_hashes(trained.folder)


def test_a_run_goes_on_on_another_layout_under_torchrun(
    trained: TrainedRun, recipe: Path, stopped: Interrupted
) -> None:
    layout = ("parallel.tensor=1", "parallel.data=2", "micro-batch-size=2")
    arguments = ("train", "--config", str(recipe), f"output_dir={stopped.copy}", *layout)
    command = megaponder_under_torchrun(2, *arguments)
    assert command.exit_code == 0, command.stderr
    found, expected = losses(stopped.copy), losses(trained.folder)
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-4)
    hashes = data_hashes(stopped.copy)
    assert hashes == data_hashes(trained.folder)
    assert len(set(hashes.values())) == NUM_ITERATIONS
