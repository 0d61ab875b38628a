"""Fixtures of the tests against a real SLURM and a real Ray."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm_cluster import SlurmCluster, missing_programs, slurm_cluster
from tests.support.tiny_run import recipe, trained

__all__ = ["recipe", "slurm", "trained"]

# Set where these tests must run: a missing cluster is then a failure instead of a skip.
REQUIRE_CLUSTERS = "MEGAPONDER_REQUIRE_CLUSTERS"


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A SLURM of two nodes, to which the environment points the commands of SLURM."""
    missing = missing_programs()
    if missing:
        what = (
            f"a real SLURM needs {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge)"
        )
        assert not os.environ.get(REQUIRE_CLUSTERS), what
        pytest.skip(f"NOT RUN: {what}")
    # The paths of sockets must be short.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        slurm_cluster(Path(folder)) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in cluster.variables.items():
            patch.setenv(name, value)
        yield cluster
