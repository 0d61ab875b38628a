"""`megaponder checkpoint` on checkpoints of a real model, saved once on one rank and once on two."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from megatron_ext.parallel.groups import destroy_groups
from pipeline.checkpoint.comparison import compare_checkpoints
from pipeline.checkpoint.loading import load_checkpoint, load_weights
from pipeline.checkpoint.offline import OfflineReader
from pipeline.checkpoint.saver import save_checkpoint
from pipeline.checkpoint.state import TrainState, read_train_state
from pipeline.cli import app
from pipeline.shared.errors import CheckpointError
from tests.support.ranks import SharedRanks, run_alone
from tests.support.tiny_gpt import TinyGpt

pytestmark = pytest.mark.multiprocess

EMBEDDING = "embedding.word_embeddings.weight"


def _save_three(directory: Path, tensor: int) -> None:
    """Save after each of three steps."""
    run = TinyGpt(tensor=tensor)
    for iteration in (1, 2, 3):
        run.train(1)
        save_checkpoint(
            directory,
            TrainState(iteration=iteration, consumed_samples=8 * iteration, consumed_tokens=128 * iteration),
            module=run.module,
            optimizer=run.optimizer,
            scheduler=run.scheduler,
            groups=run.groups,
            config_file=directory.parent / "run_config.yaml",
        )
    destroy_groups()


def _train_from(directory: Path) -> list[tuple[float, float]]:
    run = TinyGpt(seed=2)
    try:
        load_checkpoint(
            directory,
            module=run.module,
            optimizer=run.optimizer,
            scheduler=run.scheduler,
            groups=run.groups,
        )
        return run.train(2)
    finally:
        destroy_groups()


def _weights_from(directory: Path) -> dict[str, torch.Tensor]:
    run = TinyGpt(seed=2)
    load_weights(directory, module=run.module, groups=run.groups)
    destroy_groups()
    return {name: value.detach().clone() for name, value in run.module.named_parameters()}


@pytest.fixture(scope="module")
def folder(ranks: SharedRanks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    (folder / "run_config.yaml").write_text("name: tiny\n")
    run_alone(_save_three, folder / "one", 1)
    ranks.run(_save_three, 2, folder / "two", 2)
    return folder


def _checkpoint(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["checkpoint", *map(str, arguments)], env={"COLUMNS": "200"})


def _json(*arguments: object) -> Any:
    return json.loads(_checkpoint(*arguments, "--json").stdout)


def test_list_shows_every_checkpoint_and_the_tracker(folder: Path) -> None:
    rows = _json("list", folder / "two")
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert [row["is_tracked"] for row in rows] == [False, False, True]
    assert all(row["is_whole"] for row in rows)
    assert rows[1]["state"]["consumed_tokens"] == 256
    files = (folder / "two" / "iter_0000002").iterdir()
    assert rows[1]["bytes"] == sum(path.stat().st_size for path in files)
    assert _checkpoint("list", folder / "two").exit_code == 0


def test_verify_finds_intact_checkpoints_and_names_damaged_files(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "two", tmp_path / "two")
    assert _checkpoint("verify", tmp_path / "two").exit_code == 0
    damaged = tmp_path / "two" / "iter_0000002" / "__1_0.distcp"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 8
    damaged.write_bytes(content)
    (tmp_path / "two" / "iter_0000003" / "common.pt").unlink()
    result = _checkpoint("verify", tmp_path / "two")
    assert result.exit_code == 1
    assert re.search(r"iter_0000002: DAMAGED\n +__1_0\.distcp ", result.stdout)
    assert re.search(r"iter_0000003: DAMAGED\n +common\.pt ", result.stdout)
    assert result.stdout.count("DAMAGED") == 2
    assert _checkpoint("verify", tmp_path / "two" / "iter_0000001").exit_code == 0
    assert _checkpoint("verify", tmp_path / "two", "--iteration", 2).exit_code == 1
    # `list` compares sizes only.
    assert [row["is_whole"] for row in _json("list", tmp_path / "two")] == [True, True, False]


def test_show_has_progress_settings_and_tensors(folder: Path) -> None:
    shown = _json("show", folder / "two", "--tensors", "*word_embeddings*")
    assert shown["state"]["iteration"] == 3
    assert shown["config"] == "name: tiny\n"
    rows = {row["name"]: row for row in shown["tensors"]}
    assert set(rows) == {
        EMBEDDING,
        *(f"optimizer.state.{kind}.{EMBEDDING}" for kind in ("param", "exp_avg", "exp_avg_sq")),
    }
    assert rows[EMBEDDING] | {"name": ""} == {
        "name": "",
        "shape": [64, 32],
        "dtype": "float32",
        "bytes": 8192,
        "chunks": 2,
    }
    assert "64 x 32" in _checkpoint("show", folder / "two").stdout


def test_diff_finds_a_checkpoint_equal_to_its_copy_and_different_from_another(folder: Path) -> None:
    first, second = (folder / "two" / f"iter_000000{number}" for number in (1, 2))
    assert _checkpoint("diff", first, first).exit_code == 0
    result = _checkpoint("diff", first, second)
    assert result.exit_code == 1
    assert EMBEDDING in result.stdout
    expected = OfflineReader(first).read(EMBEDDING) - OfflineReader(second).read(EMBEDDING)
    found = {row["name"]: row for row in _json("diff", first, second)}[EMBEDDING]
    assert found["largest_difference"] == pytest.approx(expected.abs().max().item(), rel=1e-6)
    assert found["num_different"] == int((expected != 0).sum())


def test_diff_of_two_layouts_compares_whole_tensors(folder: Path) -> None:
    rows = _json("diff", folder / "one", folder / "two")
    assert {row["problem"] for row in rows} == {""}
    assert 0 < max(row["largest_difference"] for row in rows if "optimizer" not in row["name"]) < 1e-4


@pytest.mark.parametrize("num_files", [1, 5])
def test_a_resharded_checkpoint_is_equal_and_resumes(folder: Path, tmp_path: Path, num_files: int) -> None:
    output = tmp_path / "resharded"
    result = _checkpoint("reshard", folder / "two", "--files", num_files, "--output", output)
    assert result.exit_code == 0, result.output
    written = output / "iter_0000003"
    assert len(list(written.glob("*.distcp"))) == num_files
    assert all(item.is_equal for item in compare_checkpoints(folder / "two" / "iter_0000003", written))
    assert _checkpoint("verify", output).exit_code == 0
    assert OfflineReader(written).objects == OfflineReader(folder / "two" / "iter_0000003").objects
    assert run_alone(_train_from, output) == run_alone(_train_from, folder / "two")


def test_an_average_is_the_mean_of_the_weights_and_loads(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "averaged"
    result = _checkpoint("average", folder / "two", 1, 3, "--output", output)
    assert result.exit_code == 0, result.output
    readers = [OfflineReader(folder / "two" / f"iter_000000{number}") for number in (1, 3)]
    written = OfflineReader(output / "iter_0000003")
    assert not [name for name in written.tensors if name.startswith("optimizer")]
    for name in written.tensors:
        mean = (readers[0].read(name).double() + readers[1].read(name).double()) / 2
        assert torch.equal(written.read(name), mean.float())
    assert read_train_state(written.folder).averaged_iterations == (1, 3)
    assert _checkpoint("verify", output).exit_code == 0
    weights = run_alone(_weights_from, output)
    assert torch.equal(weights[EMBEDDING], written.read(EMBEDDING))
    with pytest.raises(CheckpointError, match=r"\binit_from\b"):
        run_alone(_train_from, output)


@pytest.mark.parametrize("command", [("reshard",), ("average", 1, 3)])
def test_nothing_is_written_into_a_folder_that_is_not_empty(
    folder: Path, tmp_path: Path, command: tuple[Any, ...]
) -> None:
    (tmp_path / "mine").write_text("")
    result = _checkpoint(command[0], folder / "two", *command[1:], "--output", tmp_path)
    assert isinstance(result.exception, CheckpointError)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_average_of_one_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    assert _checkpoint("average", folder / "two", 1, 1, "--output", tmp_path / "out").exit_code == 2
