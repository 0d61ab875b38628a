"""One corpus, one recipe and one finished run for all tests of whole commands."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import Finished, megaponder
from tests.support.corpus import prepare_here, train_small_tokenizer, write_corpus
from tests.support.runs import write_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """A run that went from its first to its last iteration without a break."""

    folder: Path
    command: Finished

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a tiny run on two tensor-parallel ranks, with data for it."""
    folder = tmp_path_factory.mktemp("recipe")
    source = write_corpus(folder / "text")
    tokenizer = train_small_tokenizer(source, folder / "tokenizer.model")
    prepare_here(source, tokenizer, folder / "data")
    return write_recipe(folder / "recipe.yaml", data=folder / "data")


@pytest.fixture(scope="session")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """PonderLM-3, trained by `megaponder train` on two ranks that the command starts itself."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    command = megaponder("train", "--config", str(recipe), f"output_dir={folder}")
    assert command.exit_code == 0, command.stderr
    return TrainedRun(folder=folder, command=command)
