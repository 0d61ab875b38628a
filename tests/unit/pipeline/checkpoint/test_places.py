from pathlib import Path

import pytest

from pipeline.checkpoint.folder import CONFIG_NAME
from pipeline.checkpoint.inventory import take_inventory
from pipeline.checkpoint.places import checkpoints_at, run_at
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.config.load import build_config, dump_config
from pipeline.shared.errors import NoCheckpointError
from pipeline.shared.exit_codes import ExitCode
from tests.unit.pipeline.checkpoint.saved import save, write_partial
from tests.unit.pipeline.config.settings import changed_settings


def write_run(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    dump_config(build_config(changed_settings(output_dir=str(folder), **changes)), folder / CONFIG_NAME)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "runs" / "demo")
    save(folder / "checkpoints", 100)
    save(folder / "checkpoints", 200)
    return folder


@pytest.mark.parametrize("below", ["", "checkpoints", "checkpoints/iter_0000200"])
def test_a_run_its_checkpoints_and_one_of_them_name_the_same(run: Path, below: str) -> None:
    assert checkpoints_at(run / below) == run / "checkpoints"
    assert run_at(run / below) == run
    assert resolve_checkpoint(run / below) == run / "checkpoints" / "iter_0000200"
    assert resolve_checkpoint(run / below, iteration=100) == run / "checkpoints" / "iter_0000100"
    assert take_inventory(run / below, reads=False)[-1].iteration == 200


def test_checkpoints_outside_of_the_run_are_found_from_it_and_the_run_from_them(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk" / "saved"
    run = write_run(tmp_path / "run", checkpoint__directory=str(elsewhere))
    folder = save(elsewhere, 7)
    dump_config(
        build_config(changed_settings(output_dir=str(run), checkpoint__directory=str(elsewhere))),
        folder / CONFIG_NAME,
    )

    assert resolve_checkpoint(run) == folder
    assert run_at(folder) == run_at(elsewhere) == run


def test_a_wrong_path_is_wrong_usage_and_gets_the_one_that_was_meant(run: Path, tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    hf.mkdir()
    (hf / "config.json").write_text("{}")
    for typed, meant in (
        (tmp_path / "runs" / "dmeo", run),
        (tmp_path / "rusn" / "demo", run),
        (run / CONFIG_NAME, run),
        (tmp_path / "runs", run),
        (hf, "convert from-hf"),
        (tmp_path / "nothing" / "alike", tmp_path),
    ):
        for resolve in (resolve_checkpoint, run_at):
            with pytest.raises(NoCheckpointError) as caught:
                resolve(typed)
            assert str(meant) in str(caught.value)
            assert caught.value.exit_code == ExitCode.USAGE


def test_an_iteration_that_was_not_saved_lists_those_that_were(run: Path) -> None:
    write_partial(run / "checkpoints", 300)
    for typed, iteration in ((run, 300), (run / "checkpoints" / "iter_0000300", None)):
        with pytest.raises(NoCheckpointError, match="100, 200"):
            resolve_checkpoint(typed, iteration=iteration)
    with pytest.raises(NoCheckpointError, match="100, 200"):
        take_inventory(run, iteration=300, reads=False)
