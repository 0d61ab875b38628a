"""Rewritten checkpoints: what is copied, what is refused, and what is left behind."""

from pathlib import Path

import pytest
import torch

from pipeline.checkpoint.checksums import find_damage
from pipeline.checkpoint.folder import publish, start_partial_checkpoint
from pipeline.checkpoint.offline import OfflineReader, OfflineWriter, full_chunk
from pipeline.checkpoint.rewriting import average, reshard
from pipeline.checkpoint.state import TrainState, write_train_state
from pipeline.shared.errors import CheckpointError
from tests.support.foreign import Bomb, in_common, refresh_checksums, saved

VALUES = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def write(directory: Path, iteration: int, values: torch.Tensor = VALUES) -> Path:
    partial = start_partial_checkpoint(directory, iteration)
    with OfflineWriter(partial) as writer:
        writer.write_chunk("weight", values, chunk=full_chunk(values.size()), size=values.size())
        writer.write_bytes("layer._extra_state/shard_0_1", saved([None]))
    (partial / "common.pt").write_bytes(saved({"content_metadata": {}}))
    for name in ("metadata.json", "run_config.yaml", "identity.json", "tokenizer.model"):
        (partial / name).write_text(f"{name} of {iteration}")
    write_train_state(partial, TrainState(iteration=iteration, consumed_samples=8))
    return publish(partial)


def test_identity_and_tokenizer_are_kept(tmp_path: Path) -> None:
    first, second = write(tmp_path / "run", 1), write(tmp_path / "run", 2, 3 * VALUES)
    for folder in (
        reshard(second, tmp_path / "resharded", num_files=1),
        average([first, second], tmp_path / "mean"),
    ):
        for name in ("run_config.yaml", "identity.json", "tokenizer.model"):
            assert (folder / name).read_text() == f"{name} of 2"
        assert not find_damage(folder)
    assert torch.equal(OfflineReader(tmp_path / "mean" / "iter_0000002").read("weight"), 2 * VALUES)


def test_what_a_killed_call_left_is_removed_by_the_next(tmp_path: Path) -> None:
    source = write(tmp_path / "run", 1)
    left = start_partial_checkpoint(tmp_path / "new", 1)
    (left / "__0_0.distcp").write_text("a part")
    folder = reshard(source, tmp_path / "new", num_files=1)
    assert {path.name for path in folder.parent.iterdir()} == {
        "iter_0000001",
        "latest_checkpointed_iteration.txt",
    }


def test_a_folder_with_other_content_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    source, other = write(tmp_path / "run", 1), tmp_path / "new"
    (other / "iter_0000001.partial").mkdir(parents=True)
    (other / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="new"):
        reshard(source, other, num_files=1)
    assert {path.name for path in other.iterdir()} == {"iter_0000001.partial", "notes.txt"}


@pytest.mark.parametrize("exists", [False, True])
def test_a_source_that_is_refused_leaves_nothing(tmp_path: Path, exists: bool) -> None:
    source, other = write(tmp_path / "run", 1), tmp_path / "new"
    (source / "__0_0.distcp").write_bytes(b"\0" * (source / "__0_0.distcp").stat().st_size)
    if exists:
        other.mkdir()
    with pytest.raises(CheckpointError):
        reshard(source, other, num_files=1)
    assert other.exists() == exists
    assert not exists or not any(other.iterdir())


def test_code_in_a_file_that_would_only_be_copied_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "run", 1)
    in_common(source, Bomb(tmp_path / "mark"))
    refresh_checksums(source)
    for rewrite in (
        lambda: reshard(source, tmp_path / "new", num_files=1),
        lambda: average([source, source], tmp_path / "new"),
    ):
        with pytest.raises(CheckpointError, match=r"common\.pt"):
            rewrite()
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "mark").exists()
