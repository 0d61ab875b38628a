"""Fixtures: a recipe with its data, and a finished run, made once for all workers of pytest-xdist."""

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests.support.commands import Finished, megaponder
from tests.support.corpus import prepare_here, train_small_tokenizer, write_corpus
from tests.support.runs import write_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """A finished run that was never interrupted, and the command that trained it."""

    folder: Path
    command: Finished

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a tiny run on two tensor-parallel ranks, with data for it."""

    def make(folder: Path) -> None:
        source = write_corpus(folder / "text")
        tokenizer = train_small_tokenizer(source, folder / "tokenizer.model")
        prepare_here(source, tokenizer, folder / "data")
        write_recipe(folder / "recipe.yaml", data=folder / "data")

    return made_once(tmp_path_factory, "recipe", make) / "recipe.yaml"


@pytest.fixture(scope="session")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """PonderLM-3, trained by `megaponder train` on two ranks that the command starts itself."""

    def make(folder: Path) -> None:
        command = megaponder("train", "--config", str(recipe), f"output_dir={folder / 'run'}")
        assert command.exit_code == 0, command.stderr
        folder.with_suffix(".json").write_text(json.dumps(asdict(command)))

    folder = made_once(tmp_path_factory, "trained", make)
    command = Finished(**json.loads(folder.with_suffix(".json").read_text()))
    return TrainedRun(folder=folder / "run", command=command)


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first worker to ask for it makes while the others wait."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
