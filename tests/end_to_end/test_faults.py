"""A run that is killed, told to stop, put to sleep and damaged equals one that is left in peace."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.support.faults import FAULTS, Campaign, account_of, shuffled_faults, steps_of

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

SEED = 20
# One of each way to end, at the places that hurt most.
SHORT = (
    "SIGTERM in the start",
    "a rank killed in a save",
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
    finished = campaign.complete()
    assert finished.exit_code == 0, finished.stderr
    undisturbed = replace(campaign, folder=campaign.folder.with_name("undisturbed"), injected=[])
    finished = undisturbed.complete()
    assert finished.exit_code == 0, finished.stderr
    found = steps_of(campaign.folder)
    assert len(found) == campaign.num_iterations
    assert found == steps_of(undisturbed.folder)


def _say(what: object) -> None:
    """Show how far it is, because it takes minutes."""
    print(f"\n{what}", end="", flush=True)  # noqa: T201
