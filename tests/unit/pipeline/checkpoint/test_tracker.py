import os
from pathlib import Path

import pytest

from pipeline.checkpoint.folder import TRACKER_NAME
from pipeline.checkpoint.resuming import list_candidates
from pipeline.checkpoint.tracker import latest_iteration, resolve_checkpoint
from pipeline.shared.errors import CheckpointError
from tests.unit.pipeline.checkpoint.saved import save, write_partial


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert latest_iteration(tmp_path) is None
    assert latest_iteration(tmp_path / "absent") is None
    with pytest.raises(CheckpointError, match=r"latest_checkpointed_iteration\.txt"):
        resolve_checkpoint(tmp_path)


def test_the_newest_saved_is_the_latest(tmp_path: Path) -> None:
    for iteration in (100, 200):
        save(tmp_path, iteration)
    assert latest_iteration(tmp_path) == 200
    assert resolve_checkpoint(tmp_path) == tmp_path / "iter_0000200"
    assert resolve_checkpoint(tmp_path, iteration=100) == tmp_path / "iter_0000100"
    assert resolve_checkpoint(tmp_path / "iter_0000100") == tmp_path / "iter_0000100"


def test_a_save_interrupted_before_its_rename_leaves_the_previous_in_use(tmp_path: Path) -> None:
    save(tmp_path, 100)
    write_partial(tmp_path, 200)
    assert latest_iteration(tmp_path) == 100
    assert resolve_checkpoint(tmp_path) == tmp_path / "iter_0000100"


def test_a_save_interrupted_before_the_tracker_leaves_the_previous_in_use(tmp_path: Path) -> None:
    save(tmp_path, 100)
    tracker = (tmp_path / TRACKER_NAME).read_text()
    save(tmp_path, 200)
    (tmp_path / TRACKER_NAME).write_text(tracker)
    assert latest_iteration(tmp_path) == 100


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", "''"), ("12x", "'12x'"), ("300", "300")],
)
def test_a_tracker_that_names_no_checkpoint_is_an_error_that_lists_those_there_are(
    tmp_path: Path, text: str, complaint: str
) -> None:
    save(tmp_path, 100)
    (tmp_path / TRACKER_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=complaint) as error:
        latest_iteration(tmp_path)
    assert "100" in str(error.value)


def test_checkpoints_without_a_tracker_are_an_error(tmp_path: Path) -> None:
    save(tmp_path, 100)
    (tmp_path / TRACKER_NAME).unlink()
    with pytest.raises(CheckpointError, match=rf"{TRACKER_NAME} .*100"):
        latest_iteration(tmp_path)


def test_a_folder_without_its_state_is_no_checkpoint(tmp_path: Path) -> None:
    (save(tmp_path, 100) / "train_state.json").unlink()
    with pytest.raises(CheckpointError, match="iter_0000100"):
        latest_iteration(tmp_path)


@pytest.mark.parametrize("content", [b"9" * 5000, b"9" * 30, b"\xff\xfe\x00", b"1\n2", b"-1", b"x" * 10**6])
def test_a_tracker_with_nonsense_in_it_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    save(tmp_path, 3)
    (tmp_path / TRACKER_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match=TRACKER_NAME):
        latest_iteration(tmp_path)
    assert list_candidates(tmp_path).folders == (tmp_path / "iter_0000003",)


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link"])
def test_a_tracker_that_is_no_file_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    save(tmp_path, 3)
    tracker = tmp_path / TRACKER_NAME
    tracker.unlink()
    if kind == "folder":
        tracker.mkdir()
    elif kind == "pipe":
        os.mkfifo(tracker)
    else:
        tracker.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=TRACKER_NAME):
        latest_iteration(tmp_path)
    assert list_candidates(tmp_path).folders == (tmp_path / "iter_0000003",)
