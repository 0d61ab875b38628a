"""A run that is stopped, killed, suspended and damaged equals an uninterrupted one."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest

from pipeline.checkpoint.tracker import TRACKER_NAME, latest_iteration
from tests.support.commands import Finished, megaponder_under_torchrun
from tests.support.faults import (
    CTRL_C,
    FAULTS,
    SAVE_INTERVAL,
    Campaign,
    account_of,
    shuffled_faults,
    steps_of,
)
from tests.support.runs import written_events
from tests.support.small_disk import make_room, small_disk

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

SEED = 20
NUM_ITERATIONS = 60
# A checkpoint of the run has about 1 MB.
DISK_SIZE = "1600000"
# One of each way to end, at the places that hurt most.
SHORT = (
    "SIGTERM in the start",
    "a rank killed in a save",
    "the launcher killed in a save in the background",
    "the launcher killed in training",
    "a rank suspended",
    "killed, newest checkpoint truncated",
    "killed, a byte of the newest checkpoint flipped",
    "killed, tracker points to nothing",
)
ONE_RANK = "parallel.tensor=1"
# Loss, gradient norm and data hash by iteration.
Steps = dict[int, tuple[float, float, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A run after Ctrl-C.

    Attributes:
        campaign: that resumes it.
        copy: of its folder as it was then.
        command: that was stopped.
    """

    campaign: Campaign
    copy: Path
    command: Finished


@pytest.fixture(scope="module")
def stopped(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("faults")
    campaign = Campaign(recipe=recipe, folder=folder / "run", num_iterations=NUM_ITERATIONS)
    command = campaign.suffer(CTRL_C, Random(SEED))
    shutil.copytree(campaign.folder, folder / "copy")
    return Stopped(campaign=campaign, copy=folder / "copy", command=command)


@pytest.fixture(scope="module")
def uninterrupted(stopped: Stopped) -> Steps:
    return _uninterrupted(stopped.campaign)


def test_ctrl_c_saves_the_iteration_that_was_reached(stopped: Stopped) -> None:
    assert stopped.command.exit_code == 75
    assert "Traceback" not in stopped.command.stderr
    checkpoints = stopped.copy / "checkpoints"
    reached = max(steps_of(stopped.copy))
    assert latest_iteration(checkpoints) == reached < NUM_ITERATIONS
    saved = {*range(SAVE_INTERVAL, reached, SAVE_INTERVAL), reached}
    assert {path.name for path in checkpoints.iterdir()} == {
        TRACKER_NAME,
        *(f"iter_{iteration:07d}" for iteration in saved),
    }


def test_a_stopped_run_resumes_on_another_layout_under_torchrun(
    stopped: Stopped, uninterrupted: Steps
) -> None:
    last = max(steps_of(stopped.copy)) + 8
    layout = (ONE_RANK, "parallel.data=2", "micro-batch-size=2", f"train-iters={last}")
    copy = replace(stopped.campaign, folder=stopped.copy)
    command = megaponder_under_torchrun(2, *copy.arguments(*layout))
    assert command.exit_code == 0, command.stderr
    found = steps_of(stopped.copy)
    assert list(found) == list(range(1, last + 1))
    for iteration, (loss, _, data_hash) in found.items():
        expected_loss, _, expected_hash = uninterrupted[iteration]
        assert loss == pytest.approx(expected_loss, rel=1e-4)
        assert data_hash == expected_hash
    assert len({data_hash for _, _, data_hash in found.values()}) == last


def test_a_run_with_faults_equals_an_uninterrupted_one(stopped: Stopped, uninterrupted: Steps) -> None:
    random = Random(SEED)
    for name in SHORT:
        stopped.campaign.suffer(FAULTS[name], random)
    _assert_completes_with(stopped.campaign, uninterrupted)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that has room for one checkpoint of the run, but not for two."""
    with small_disk(tmp_path / "disk", size=DISK_SIZE) as folder:
        yield folder


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_ends_the_run_and_damages_nothing(
    recipe: Path, tmp_path: Path, disk: Path, in_background: bool
) -> None:
    campaign = Campaign(recipe=recipe, folder=tmp_path / "run", num_iterations=9)
    on_disk = (ONE_RANK, f"checkpoint.directory={disk}", f"checkpoint.async_save={in_background}")
    finished = campaign.resume(*on_disk)
    assert finished.exit_code == 93, finished.stderr
    assert "No space left on device" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert latest_iteration(disk) == SAVE_INTERVAL
    num_steps = len(written_events(campaign.folder))
    make_room(disk)
    finished = campaign.resume(*on_disk)
    assert finished.exit_code == 0, finished.stderr
    assert written_events(campaign.folder)[num_steps]["iteration"] == SAVE_INTERVAL + 1
    assert not list(disk.glob("*.partial"))
    # Reading the steps compares those that were repeated.
    assert len(steps_of(campaign.folder)) == campaign.num_iterations


def test_an_unreadable_shard_ends_the_start_and_damages_nothing(recipe: Path, tmp_path: Path) -> None:
    data = shutil.copytree(recipe.parent / "data", tmp_path / "data")
    campaign = Campaign(recipe=recipe, folder=tmp_path / "run", num_iterations=6)
    on_copy = (ONE_RANK, f"data.path={data}", "exit-interval=3")
    assert campaign.resume(*on_copy).exit_code == 0
    shard = max(data.glob("train-*.tar"), key=lambda path: path.stat().st_size)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1024])
    finished = campaign.resume(*on_copy)
    assert finished.exit_code == 2, finished.stderr
    for part in (shard, len(content), len(content) - 1024):
        assert str(part) in finished.stderr
    assert campaign.reached == latest_iteration(campaign.checkpoints) == 3
    shard.write_bytes(content)
    assert campaign.resume(*on_copy).exit_code == 0
    assert len(steps_of(campaign.folder)) == campaign.num_iterations


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_run_survives_thirty_faults(recipe: Path, tmp_path: Path) -> None:
    campaign = Campaign(recipe=recipe, folder=tmp_path / "run", num_iterations=240)
    random = Random(SEED)
    for fault in shuffled_faults(30, random):
        campaign.suffer(fault, random)
        _show(campaign.injected[-1])
    _assert_completes_with(campaign, _uninterrupted(campaign))
    _show(account_of(campaign))


def _uninterrupted(campaign: Campaign) -> Steps:
    """Train the same run from its first to its last iteration."""
    uninterrupted = replace(campaign, folder=campaign.folder.with_name("uninterrupted"), injected=[])
    finished = uninterrupted.resume()
    assert finished.exit_code == 0, finished.stderr
    return steps_of(uninterrupted.folder)


def _assert_completes_with(campaign: Campaign, expected: Steps) -> None:
    finished = campaign.resume()
    assert finished.exit_code == 0, finished.stderr
    found = steps_of(campaign.folder)
    assert len(found) == campaign.num_iterations
    assert found == expected


def _show(what: object) -> None:
    """Print the progress of a test that takes minutes."""
    print(f"\n{what}", end="", flush=True)  # noqa: T201
