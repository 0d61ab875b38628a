from pathlib import Path
from typing import Any

import pytest

from data_prep.manifest import load_manifest, save_manifest
from pipeline.checkpoint.folder import CONVERTED_SOURCE
from pipeline.config.errors import ConfigError
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.run.inputs import check_inputs, input_problems
from tests.support.shards import VOCAB_SIZE, write_split
from tests.unit.pipeline.config.settings import changed_settings

DOCUMENTS = [[1, 2, 3], [4, 5]]


def write_data(folder: Path) -> Path:
    """Write a training and a held-out split."""
    write_split(folder, DOCUMENTS)
    training = load_manifest(folder)
    write_split(folder, DOCUMENTS, split="heldout")
    heldout = load_manifest(folder)
    save_manifest(heldout.model_copy(update={"shards": (*training.shards, *heldout.shards)}), folder)
    return folder


def config(data: Path, **changes: Any) -> RunConfig:
    return build_config(
        changed_settings(data__path=str(data), output_dir=str(data.parent / "run"), **changes)
    )


def paths(run: RunConfig) -> list[str]:
    return [problem.path for problem in input_problems(run)]


def test_complete_inputs_have_no_problem(tmp_path: Path) -> None:
    check_inputs(config(write_data(tmp_path / "data"), model__vocab_size=VOCAB_SIZE))


def test_missing_data_weights_and_a_small_vocabulary_are_found_together(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    run = config(
        data,
        model__vocab_size=VOCAB_SIZE - 1,
        data__heldout_path=str(tmp_path / "absent"),
        init_from={"path": str(tmp_path / "weights"), "method": "vanilla"},
    )
    with pytest.raises(ConfigError) as caught:
        check_inputs(run)
    found = [problem.path for problem in caught.value.problems]
    assert found == ["data.heldout_path", "model.vocab_size", "init_from.path"]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_missing_shard_or_split_is_found(tmp_path: Path, split: str) -> None:
    data = write_data(tmp_path / "data")
    next(data.glob(f"{split}-*.tar")).unlink()
    assert paths(config(data)) == ["data.path"]
    assert paths(config(data, **{f"data__{split}_split": "another"})) == ["data.path"]


def test_a_folder_that_is_no_hugging_face_model_is_found(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    start = {"path": str(tmp_path), "format": "hf", "method": "vanilla"}
    assert paths(config(data, init_from=start)) == ["init_from.path"]
    (tmp_path / "config.json").write_text("{}")
    assert paths(config(data, init_from=start)) == []


def test_a_source_that_was_converted_may_be_gone(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    start = {"path": str(tmp_path / "gone"), "format": "hf", "method": "vanilla"}
    run = config(data, init_from=start)
    assert paths(run) == ["init_from.path"]
    (run.output_dir / CONVERTED_SOURCE).mkdir(parents=True)
    assert paths(run) == []


def test_initial_weights_are_not_needed_where_the_run_resumes(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    run = config(data, init_from={"path": str(tmp_path / "weights"), "method": "vanilla"})
    assert paths(run) == ["init_from.path"]
    (run.checkpoint_directory / "iter_0000001").mkdir(parents=True)
    assert paths(run) == []
