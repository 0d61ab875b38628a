"""Fixtures of the tests on several ranks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.layout_steps import write_references
from tests.support.layouts import MODELS
from tests.support.ranks import SharedRanks, run_alone
from tests.support.tiny_run import made_once, recipe

__all__ = ["ranks", "recipe", "references"]


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with what one process computes of every model in float32, made once for all workers."""

    def make(folder: Path) -> None:
        run_alone(write_references, [(name, "fp32") for name in MODELS], folder / "steps.pt")

    return made_once(tmp_path_factory, "references", make) / "steps.pt"


@pytest.fixture(scope="session")
def ranks() -> Iterator[SharedRanks]:
    """Run functions on ranks that live as long as the tests; what a function builds it must take down."""
    shared = SharedRanks()
    try:
        yield shared
    finally:
        shared.close()
