from pathlib import Path

import pytest

from pipeline.checkpoint_folder import (
    TRACKER_NAME,
    CheckpointError,
    TrainState,
    checkpoint_folder,
    latest_iteration,
    publish,
    read_train_state,
    remove_old_checkpoints,
    resolve_checkpoint,
    start_partial_checkpoint,
    write_train_state,
)


def _save(directory: Path, iteration: int) -> Path:
    partial = start_partial_checkpoint(directory, iteration)
    write_train_state(partial, TrainState(iteration=iteration, consumed_samples=8 * iteration))
    return publish(partial)


def _folders(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert latest_iteration(tmp_path) is None
    assert latest_iteration(tmp_path / "absent") is None
    with pytest.raises(CheckpointError, match="must hold a checkpoint"):
        resolve_checkpoint(tmp_path)


def test_the_newest_saved_is_the_latest(tmp_path: Path) -> None:
    for iteration in (100, 200):
        assert _save(tmp_path, iteration) == checkpoint_folder(tmp_path, iteration)
    assert latest_iteration(tmp_path) == 200
    assert resolve_checkpoint(tmp_path) == tmp_path / "iter_0000200"
    assert resolve_checkpoint(tmp_path, iteration=100) == tmp_path / "iter_0000100"
    assert resolve_checkpoint(tmp_path / "iter_0000100") == tmp_path / "iter_0000100"


def test_train_state_comes_back_as_written(tmp_path: Path) -> None:
    state = TrainState(
        iteration=7, consumed_samples=56, consumed_tokens=896, skipped_iterations=1, training_seconds=1.5
    )
    write_train_state(tmp_path, state)
    assert read_train_state(tmp_path) == state


def test_a_save_interrupted_before_its_rename_leaves_the_previous_in_use(tmp_path: Path) -> None:
    _save(tmp_path, 100)
    partial = start_partial_checkpoint(tmp_path, 200)
    write_train_state(partial, TrainState(iteration=200, consumed_samples=0))
    assert latest_iteration(tmp_path) == 100
    assert resolve_checkpoint(tmp_path) == tmp_path / "iter_0000100"


def test_a_save_interrupted_before_the_tracker_leaves_the_previous_in_use(tmp_path: Path) -> None:
    _save(tmp_path, 100)
    tracker = (tmp_path / TRACKER_NAME).read_text()
    _save(tmp_path, 200)
    (tmp_path / TRACKER_NAME).write_text(tracker)
    assert latest_iteration(tmp_path) == 100


def test_the_next_save_removes_what_an_interrupted_one_left(tmp_path: Path) -> None:
    leftover = start_partial_checkpoint(tmp_path, 100)
    (leftover / "__0_0.distcp").write_bytes(b"half")
    _save(tmp_path, 200)
    assert _folders(tmp_path) == ["iter_0000200"]


def test_saving_an_iteration_again_replaces_it(tmp_path: Path) -> None:
    (_save(tmp_path, 100) / "old").write_text("")
    _save(tmp_path, 100)
    assert _folders(tmp_path) == ["iter_0000100"]
    assert not (tmp_path / "iter_0000100" / "old").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", "must hold an iteration, but holds ''"), ("12x", "'12x'"), ("300", "names iteration 300")],
)
def test_a_tracker_that_names_no_checkpoint_is_an_error_with_a_cure(
    tmp_path: Path, text: str, complaint: str
) -> None:
    _save(tmp_path, 100)
    (tmp_path / TRACKER_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=complaint) as error:
        latest_iteration(tmp_path)
    assert "write one of 100 into" in str(error.value)


def test_checkpoints_without_a_tracker_are_an_error(tmp_path: Path) -> None:
    _save(tmp_path, 100)
    (tmp_path / TRACKER_NAME).unlink()
    with pytest.raises(CheckpointError, match=r"is missing, while iteration\(s\) 100"):
        latest_iteration(tmp_path)


def test_a_folder_without_its_state_is_no_checkpoint(tmp_path: Path) -> None:
    (_save(tmp_path, 100) / "train_state.json").unlink()
    with pytest.raises(CheckpointError, match="is no finished checkpoint"):
        latest_iteration(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"iteration": 1}', '{"unknown": 1}'])
def test_a_damaged_state_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "train_state.json").write_text(text)
    with pytest.raises(CheckpointError, match="could not be read"):
        read_train_state(tmp_path)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 4):
        _save(tmp_path, iteration)
    remove_old_checkpoints(tmp_path, keep_last=2)
    assert _folders(tmp_path) == ["iter_0000003", "iter_0000004"]


def test_the_trackers_checkpoint_is_kept_though_it_is_old(tmp_path: Path) -> None:
    for iteration in (5, 6, 2):
        _save(tmp_path, iteration)
    remove_old_checkpoints(tmp_path, keep_last=1)
    assert _folders(tmp_path) == ["iter_0000002", "iter_0000006"]
    assert latest_iteration(tmp_path) == 2
