from pathlib import Path

from pipeline.checkpoint.checksums import find_damage, write_checksums
from pipeline.checkpoint.folder import checkpoint_folder, clear_up, finished_iterations, iterations_in
from tests.unit.pipeline.checkpoint.saved import folders, save, write_partial


def test_a_checkpoint_is_whole_once_it_has_its_final_name(tmp_path: Path) -> None:
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
    clear_up(tmp_path)
    assert folders(tmp_path) == ["iter_0000100"]
    assert (old / "new").exists()
    assert find_damage(old) == []


def test_a_replaced_checkpoint_comes_back_where_the_new_one_is_gone(tmp_path: Path) -> None:
    old = save(tmp_path, 100)
    old.rename(tmp_path / "iter_0000100.replaced.partial")
    clear_up(tmp_path)
    assert folders(tmp_path) == ["iter_0000100"]
    assert find_damage(old) == []


def test_a_replaced_checkpoint_goes_where_the_new_one_is_in_place(tmp_path: Path) -> None:
    save(tmp_path, 100).rename(tmp_path / "iter_0000100.replaced.partial")
    partial = tmp_path / "iter_0000200.partial"
    partial.mkdir()
    (tmp_path / "iter_0000100").mkdir()
    clear_up(tmp_path)
    assert folders(tmp_path) == ["iter_0000100"]


def test_a_folder_without_its_state_is_there_but_not_finished(tmp_path: Path) -> None:
    (save(tmp_path, 100) / "train_state.json").unlink()
    write_partial(tmp_path, 200)
    assert iterations_in(tmp_path) == [100]
    assert finished_iterations(tmp_path) == []
