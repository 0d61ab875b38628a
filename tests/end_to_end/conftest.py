"""One corpus, one recipe and one finished run for all tests of whole commands."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import Finished, megaponder
from tests.support.corpus import prepare_here, train_small_tokenizer, write_corpus
from tests.support.runs import write_recipe
from tests.support.slurm_cluster import SlurmCluster, missing_programs, slurm_cluster

# Set where tests on real clusters must run: what they need and is missing is then an error.
REQUIRE_CLUSTERS = "MEGAPONDER_REQUIRE_CLUSTERS"


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


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A SLURM of two nodes; its commands find it through the environment."""
    missing = missing_programs()
    if missing:
        what = (
            f"a real SLURM needs {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge)"
        )
        assert not os.environ.get(REQUIRE_CLUSTERS), what
        pytest.skip(f"NOT RUN: {what}")
    # Sockets have short paths.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        slurm_cluster(Path(folder)) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in cluster.variables.items():
            patch.setenv(name, value)
        yield cluster
