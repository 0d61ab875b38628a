from pathlib import Path

from pipeline.checkpoint.checksums import find_damage, write_checksums
from pipeline.checkpoint.folder import (
    checkpoint_folder,
    clean_up,
    finished_iterations,
    iterations_in,
    remove_old_checkpoints,
)
from pipeline.checkpoint.tracker import latest_iteration
from tests.unit.pipeline.checkpoint.saved import folders, save, write_partial


def test_a_checkpoint_is_complete_once_it_has_its_final_name(tmp_path: Path) -> None:
    folder = save(tmp_path, 100)
    assert folder == checkpoint_folder(tmp_path, 100)
    assert find_damage(folder) == []
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "100\n"


def test_the_next_save_removes_what_an_interrupted_one_left(tmp_path: Path) -> None:
    write_partial(tmp_path, 100)
    save(tmp_path, 200)
    assert folders(tmp_path) == ["iter_0000200"]


def test_saving_an_iteration_again_replaces_it(tmp_path: Path) -> None:
    (save(tmp_path, 100) / "old").write_text("")
    save(tmp_path, 100)
    assert folders(tmp_path) == ["iter_0000100"]
    assert not (tmp_path / "iter_0000100" / "old").exists()


def test_a_replacement_interrupted_between_its_renames_is_finished(tmp_path: Path) -> None:
    old = save(tmp_path, 100)
    partial = write_partial(tmp_path, 100)
    (partial / "new").write_text("")
    write_checksums(partial)
    old.rename(tmp_path / "iter_0000100.replaced.partial")
    clean_up(tmp_path)
    assert folders(tmp_path) == ["iter_0000100"]
    assert (old / "new").exists()
    assert find_damage(old) == []


def test_a_replaced_checkpoint_is_restored_if_the_new_one_is_missing(tmp_path: Path) -> None:
    old = save(tmp_path, 100)
    old.rename(tmp_path / "iter_0000100.replaced.partial")
    clean_up(tmp_path)
    assert folders(tmp_path) == ["iter_0000100"]
    assert find_damage(old) == []


def test_a_replaced_checkpoint_is_removed_if_the_new_one_is_in_place(tmp_path: Path) -> None:
    save(tmp_path, 100).rename(tmp_path / "iter_0000100.replaced.partial")
    partial = tmp_path / "iter_0000200.partial"
    partial.mkdir()
    (tmp_path / "iter_0000100").mkdir()
    clean_up(tmp_path)
    assert folders(tmp_path) == ["iter_0000100"]


def test_a_folder_without_its_state_is_listed_but_not_finished(tmp_path: Path) -> None:
    (save(tmp_path, 100) / "train_state.json").unlink()
    write_partial(tmp_path, 200)
    assert iterations_in(tmp_path) == [100]
    assert finished_iterations(tmp_path) == []


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


def test_checkpoints_after_the_newest_are_neither_removed_nor_counted(tmp_path: Path) -> None:
    remove_old_checkpoints(_saved(tmp_path, 5, 6, 1, 2), newest=2, keep_last=2)
    assert folders(tmp_path) == ["iter_0000001", "iter_0000002", "iter_0000005", "iter_0000006"]
    assert latest_iteration(tmp_path) == 2


def test_a_truncated_checkpoint_does_not_count_as_one_that_is_kept(tmp_path: Path) -> None:
    _saved(tmp_path, 1, 2, 3, 4)
    (tmp_path / "iter_0000003" / "__0_0.distcp").write_bytes(b"")
    remove_old_checkpoints(tmp_path, newest=4, keep_last=2)
    assert folders(tmp_path) == ["iter_0000002", "iter_0000003", "iter_0000004"]


def test_files_in_the_way_of_a_save_are_removed_or_replaced(tmp_path: Path) -> None:
    (tmp_path / "iter_0000003.partial").write_text("a file")
    (tmp_path / "iter_0000003").write_text("a file")
    (tmp_path / ".latest_checkpointed_iteration.txt.tmp-0123").write_text("left by a kill")
    save(tmp_path, 3)
    assert folders(tmp_path) == ["iter_0000003"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "latest_checkpointed_iteration.txt"
    ]
    assert not find_damage(tmp_path / "iter_0000003")
