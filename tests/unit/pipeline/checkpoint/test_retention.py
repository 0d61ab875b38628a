from pathlib import Path

from pipeline.checkpoint.retention import remove_old_checkpoints
from pipeline.checkpoint.tracker import latest_iteration
from tests.unit.pipeline.checkpoint.saved import folders, save


def _saved(directory: Path, *iterations: int) -> Path:
    for iteration in iterations:
        save(directory, iteration)
    return directory


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    remove_old_checkpoints(_saved(tmp_path, 1, 2, 3, 4), newest=4, keep_last=2)
    assert folders(tmp_path) == ["iter_0000003", "iter_0000004"]


def test_those_of_every_multiple_are_kept_too(tmp_path: Path) -> None:
    remove_old_checkpoints(_saved(tmp_path, 10, 15, 20, 25, 30, 35), newest=35, keep_last=1, keep_every=20)
    assert folders(tmp_path) == ["iter_0000020", "iter_0000035"]


def test_after_going_back_what_lies_ahead_neither_goes_nor_counts(tmp_path: Path) -> None:
    remove_old_checkpoints(_saved(tmp_path, 5, 6, 1, 2), newest=2, keep_last=2)
    assert folders(tmp_path) == ["iter_0000001", "iter_0000002", "iter_0000005", "iter_0000006"]
    assert latest_iteration(tmp_path) == 2


def test_a_truncated_checkpoint_does_not_count_as_one_that_is_kept(tmp_path: Path) -> None:
    _saved(tmp_path, 1, 2, 3, 4)
    (tmp_path / "iter_0000003" / "__0_0.distcp").write_bytes(b"")
    remove_old_checkpoints(tmp_path, newest=4, keep_last=2)
    assert folders(tmp_path) == ["iter_0000002", "iter_0000003", "iter_0000004"]
