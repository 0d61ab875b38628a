from pathlib import Path

import pytest

from pipeline.checkpoint.folder import TRACKER_NAME
from pipeline.checkpoint.resuming import list_candidates
from tests.unit.pipeline.checkpoint.saved import save, write_partial


def _iterations(directory: Path) -> list[int]:
    return [int(folder.name.removeprefix("iter_")) for folder in list_candidates(directory).folders]


def test_nothing_saved_is_a_new_run_also_after_a_first_save_was_interrupted(tmp_path: Path) -> None:
    assert list_candidates(tmp_path / "absent").is_new_run
    write_partial(tmp_path, 100)
    assert list_candidates(tmp_path).is_new_run


def test_the_trackers_comes_first_then_the_older_ones(tmp_path: Path) -> None:
    for iteration in (100, 200, 300):
        save(tmp_path, iteration)
    assert _iterations(tmp_path) == [300, 200, 100]
    assert list_candidates(tmp_path).complaint is None


def test_who_went_back_does_not_get_the_abandoned_ones(tmp_path: Path) -> None:
    for iteration in (100, 200, 300):
        save(tmp_path, iteration)
    (tmp_path / TRACKER_NAME).write_text("200\n")
    assert _iterations(tmp_path) == [200, 100]
    assert list_candidates(tmp_path).passed_over == (300,)


@pytest.mark.parametrize(
    ("text", "expected"), [("", [200, 100]), ("abc", [200, 100]), ("150", [100]), ("900", [200, 100])]
)
def test_a_tracker_that_names_nothing_is_complained_of_and_replaced(
    tmp_path: Path, text: str, expected: list[int]
) -> None:
    for iteration in (100, 200):
        save(tmp_path, iteration)
    (tmp_path / TRACKER_NAME).write_text(text)
    assert _iterations(tmp_path) == expected
    assert TRACKER_NAME in str(list_candidates(tmp_path).complaint)


def test_without_a_tracker_all_are_taken(tmp_path: Path) -> None:
    for iteration in (100, 200):
        save(tmp_path, iteration)
    (tmp_path / TRACKER_NAME).unlink()
    assert _iterations(tmp_path) == [200, 100]
    assert "is missing" in str(list_candidates(tmp_path).complaint)


@pytest.mark.parametrize("text", ["", "300"])
def test_a_tracker_without_checkpoints_is_no_new_run(tmp_path: Path, text: str) -> None:
    (tmp_path / TRACKER_NAME).write_text(text)
    assert not list_candidates(tmp_path).is_new_run


def test_a_checkpoint_without_its_state_is_a_candidate_that_must_prove_itself(tmp_path: Path) -> None:
    (save(tmp_path, 100) / "train_state.json").unlink()
    (tmp_path / TRACKER_NAME).unlink()
    assert _iterations(tmp_path) == [100]
