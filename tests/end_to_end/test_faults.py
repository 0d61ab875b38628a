"""A run that is killed, told to stop, put to sleep and damaged equals one that is left in peace."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from pipeline.checkpoint.tracker import latest_iteration
from tests.support.faults import FAULTS, SAVE_INTERVAL, Campaign, account_of, shuffled_faults, steps_of
from tests.support.small_disk import make_room, small_disk

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

SEED = 20
# A checkpoint of the run has about 1 MB.
DISK_SIZE = "1600000"
# One of each way to end, at the places that hurt most.
SHORT = (
    "SIGTERM in the start",
    "a rank killed in a save",
    "the launcher killed in a save in the background",
    "the launcher killed in training",
    "a rank put to sleep",
    "killed, newest checkpoint truncated",
    "killed, a byte of the newest checkpoint flipped",
    "killed, tracker points to nothing",
)


def test_a_run_with_faults_equals_one_without(recipe: Path, tmp_path: Path) -> None:
    campaign = Campaign(recipe=recipe, folder=tmp_path / "run", num_iterations=60)
    random = Random(SEED)
    for name in SHORT:
        campaign.suffer(FAULTS[name], random)
    _complete_and_compare(campaign)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds one checkpoint of the run, and not two."""
    with small_disk(tmp_path / "disk", size=DISK_SIZE) as folder:
        yield folder


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_ends_the_run_and_harms_nothing(
    recipe: Path, tmp_path: Path, disk: Path, in_background: bool
) -> None:
    campaign = Campaign(recipe=recipe, folder=tmp_path / "run", num_iterations=9)
    on_disk = (f"checkpoint.directory={disk}", f"checkpoint.async_save={str(in_background).lower()}")
    finished = campaign.go_on(*on_disk)
    assert finished.exit_code == 93, finished.stderr
    assert "No space left on device" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert latest_iteration(disk) == SAVE_INTERVAL
    make_room(disk)
    finished = campaign.go_on(*on_disk)
    assert finished.exit_code == 0, finished.stderr
    assert f"resumed from iteration {SAVE_INTERVAL} " in finished.stderr
    assert not list(disk.glob("*.partial"))
    # Iterations that were repeated are compared where they are read.
    assert len(steps_of(campaign.folder)) == campaign.num_iterations


def test_an_unreadable_shard_ends_the_start_and_harms_nothing(recipe: Path, tmp_path: Path) -> None:
    data = shutil.copytree(recipe.parent / "data", tmp_path / "data")
    campaign = Campaign(recipe=recipe, folder=tmp_path / "run", num_iterations=6)
    on_copy = (f"data.path={data}", "exit-interval=3")
    assert campaign.go_on(*on_copy).exit_code == 0
    shard = max(data.glob("train-*.tar"), key=lambda path: path.stat().st_size)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1024])
    finished = campaign.go_on(*on_copy)
    assert finished.exit_code == 2, finished.stderr
    assert f"{shard} must have {len(content)} bytes, but has {len(content) - 1024}" in finished.stderr
    assert campaign.reached == latest_iteration(campaign.checkpoints) == 3
    shard.write_bytes(content)
    assert campaign.go_on(*on_copy).exit_code == 0
    assert len(steps_of(campaign.folder)) == campaign.num_iterations


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_run_survives_thirty_faults(recipe: Path, tmp_path: Path) -> None:
    campaign = Campaign(recipe=recipe, folder=tmp_path / "run", num_iterations=240)
    random = Random(SEED)
    for fault in shuffled_faults(30, random):
        campaign.suffer(fault, random)
        _say(campaign.injected[-1])
    _complete_and_compare(campaign)
    _say(account_of(campaign))


def _complete_and_compare(campaign: Campaign) -> None:
    finished = campaign.go_on()
    assert finished.exit_code == 0, finished.stderr
    undisturbed = replace(campaign, folder=campaign.folder.with_name("undisturbed"), injected=[])
    finished = undisturbed.go_on()
    assert finished.exit_code == 0, finished.stderr
    found = steps_of(campaign.folder)
    assert len(found) == campaign.num_iterations
    assert found == steps_of(undisturbed.folder)


def _say(what: object) -> None:
    """Show how far it is, because it takes minutes."""
    print(f"\n{what}", end="", flush=True)  # noqa: T201
