"""What all tests share: seeds, one thread per process, the folder of golden vectors, what runs by default."""

import os
import random
import sys
from pathlib import Path

import hypothesis
import numpy
import pytest

# Several ranks share the cores of one machine; set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray reports usage over the network unless told otherwise.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# The same examples in every run, without a deadline: how long one takes depends on the load of the machine.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs of this machine from all tests and what they start, unless `-m` asks for tests of GPUs.

    Those of several ranks need the CPU: a machine has fewer GPUs than they have ranks.
    """
    if not _wants("gpu", config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state, that of torch only if something has imported it."""
    random.seed(1234)
    numpy.random.seed(1234)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(1234)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the sources."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def golden_folder(repository: Path) -> Path:
    """Return the folder of golden vectors: `MEGAPONDER_GOLDEN`, or tests/golden."""
    folder = Path(os.environ.get("MEGAPONDER_GOLDEN", repository / "tests" / "golden"))
    assert folder.is_dir(), f"{folder} must hold the golden vectors; set MEGAPONDER_GOLDEN to their folder"
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the tests marked `away`."""
    parser.addoption(
        "--away",
        action="store_true",
        help="compute all that can be on a device that is not the CPU, not only a selection",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what takes long or needs a cluster unless `-m` names its marker, and skip what needs a GPU."""
    for marker in ("matrix", "soak", "cluster", "browser"):
        if not _wants(marker, config):
            _deselect(config, items, marker)
    if not config.getoption("--away") and "away" not in config.option.markexpr:
        _deselect(config, items, "away")
    _skip_without_gpu([item for item in items if item.get_closest_marker("gpu")])


def _wants(marker: str, config: pytest.Config) -> bool:
    expression = config.option.markexpr
    return marker in expression and f"not {marker}" not in expression


def _deselect(config: pytest.Config, items: list[pytest.Item], marker: str) -> None:
    deselected = [item for item in items if item.get_closest_marker(marker)]
    items[:] = [item for item in items if not item.get_closest_marker(marker)]
    config.hook.pytest_deselected(items=deselected)


def _skip_without_gpu(marked: list[pytest.Item]) -> None:
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
