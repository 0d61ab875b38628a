"""No command runs code that somebody has put into a checkpoint, wherever in it."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.shared.errors import UserError
from tests.support import foreign
from tests.support.foreign import Bomb, planted
from tests.support.runs import one_rank
from tests.support.tiny_run import made_once

pytestmark = pytest.mark.end_to_end

SETTINGS = ("model.num_layers=1", "optimizer.lr_warmup_iters=0")
Plant = Callable[[Path, Bomb], None]


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations on one rank."""

    def make(folder: Path) -> None:
        arguments = one_rank(folder / "run", "train-iters=2", "checkpoint.interval=1", *SETTINGS)
        assert invoke("train", "--config", recipe, *arguments).exit_code == 0

    return made_once(tmp_path_factory, "foreign", make) / "run"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# {} is the folder of checkpoints.
READERS: dict[str, tuple[str, ...]] = {
    "show": ("checkpoint", "show", "{}"),
    "diff": ("checkpoint", "diff", "{}", "{}"),
    "reshard": ("checkpoint", "reshard", "{}", "--output", "{}/../new"),
    "average": ("checkpoint", "average", "{}", "1", "2", "--output", "{}/../new"),
    "generate": ("generate", "{}", "--prompt", "def", "--max-new-tokens", "1"),
    "eval": ("eval", "{}", "--iters", "1", "--output", "{}/../new.json"),
    "verify": ("verify", "{}", "--rows", "1", "--tokens", "8", "--output", "{}/../new.json"),
    "compare": ("compare", "{}", "--iters", "1", "--reevaluate", "--output", "{}/../new.png"),
    "to-hf": ("convert", "to-hf", "{}", "--no-tokenizer", "--output", "{}/../new"),
}
OF_TENSORS = {"show", "diff", "reshard", "average", "generate", "eval", "verify", "compare", "to-hf"}
USING_COMMON = {"reshard", "average", "generate", "eval", "verify", "compare"}
REFUSING: dict[Plant, set[str]] = {
    foreign.in_metadata: OF_TENSORS,
    foreign.in_unused_part_of_metadata: OF_TENSORS,
    foreign.in_name_of_tensor: OF_TENSORS,
    foreign.in_object: USING_COMMON,
    foreign.in_old_object: USING_COMMON,
    foreign.in_generators: {"reshard"},
    foreign.in_tensor: OF_TENSORS - {"show"},
    foreign.in_common: USING_COMMON,
}


@pytest.mark.parametrize("plant", foreign.PLACES, ids=lambda plant: plant.__name__)
def test_no_command_runs_code_in_a_checkpoint(run: Path, plant: Plant, tmp_path: Path) -> None:
    mark, checkpoints = tmp_path / "mark", tmp_path / "checkpoints"
    shutil.copytree(run / "checkpoints" / "iter_0000001", checkpoints / "iter_0000001")
    planted(run / "checkpoints" / "iter_0000002", checkpoints, plant, mark)
    for name, arguments in READERS.items():
        result = invoke(*(argument.format(checkpoints) for argument in arguments))
        assert not mark.exists(), f"{name} has run it"
        if name in REFUSING[plant]:
            assert isinstance(result.exception, UserError), (name, result.exception, result.output)
            assert result.exception.exit_code in (2, 93)
        assert not (tmp_path / "new").exists() or name not in REFUSING[plant], f"{name} left a part"
        shutil.rmtree(tmp_path / "new", ignore_errors=True)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_layers", 10**9), ("hidden_size", 2 * 10**9), ("vocab_size", 10**12), ("ffn_hidden_size", 10**15)],
)
def test_settings_of_an_absurd_model_are_refused_before_it_is_built(
    run: Path, setting: str, value: int, tmp_path: Path
) -> None:
    shutil.copytree(run / "checkpoints" / "iter_0000002", tmp_path / "iter_0000002")
    file = tmp_path / "iter_0000002" / "run_config.yaml"
    changed = re.sub(rf"\b{setting}: \w+", f"{setting}: {value}", file.read_text(), count=1)
    file.write_text(changed)
    foreign.refresh_checksums(tmp_path / "iter_0000002")
    for name in ("generate", "eval", "verify", "to-hf"):
        arguments = (argument.format(tmp_path / "iter_0000002") for argument in READERS[name])
        started = time.monotonic()
        result = invoke(*arguments)
        assert isinstance(result.exception, UserError), (name, result.exception)
        assert time.monotonic() - started < 60


@pytest.mark.parametrize("plant", foreign.PLACES, ids=lambda plant: plant.__name__)
def test_no_training_runs_code_in_a_checkpoint(run: Path, recipe: Path, plant: Plant, tmp_path: Path) -> None:
    mark, output = tmp_path / "mark", tmp_path / "run"
    folder = planted(run / "checkpoints" / "iter_0000002", output / "checkpoints", plant, mark)
    common = ("train-iters=3", *SETTINGS)
    resumed = invoke("train", "--config", recipe, *one_rank(output, *common))
    assert isinstance(resumed.exception, UserError), resumed.exception
    assert resumed.exception.exit_code == 93
    start = (f"init_from.path={folder}", "init_from.method=ponderlm3")
    started = invoke("train", "--config", recipe, *one_rank(tmp_path / "other", *common, *start))
    # Generators are those of the run, which weights alone do not need.
    is_needed = plant is not foreign.in_generators
    assert isinstance(started.exception, UserError) == is_needed, started.exception
    assert not mark.exists()
