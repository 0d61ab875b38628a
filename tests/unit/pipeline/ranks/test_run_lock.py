from pathlib import Path

import pytest

from pipeline.ranks.run_lock import run_lock
from pipeline.shared.folder_lock import FolderInUseError, read_owner


@pytest.fixture(autouse=True)
def started_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_both_folders_of_a_run_have_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, checkpoints = tmp_path / "run", tmp_path / "elsewhere"
    with run_lock(run, checkpoints, work="train"):
        monkeypatch.delenv("MEGAPONDER_LOCK_TOKENS")
        for folders in ((run, tmp_path / "a"), (tmp_path / "b", checkpoints)):
            with pytest.raises(FolderInUseError), run_lock(*folders, work="train"):
                pass
    with run_lock(run, run, work="train"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_ranks_after_the_first_belong_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with run_lock(tmp_path, work="train"):
        assert read_owner(tmp_path) is None
