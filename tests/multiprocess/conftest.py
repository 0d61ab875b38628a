"""Ranks that the tests of several processes share, and what is left out unless it is asked for."""

from collections.abc import Iterator

import pytest

from tests.support.ranks import SharedRanks


@pytest.fixture(scope="session")
def ranks() -> Iterator[SharedRanks]:
    """Run functions on ranks that live as long as the tests; what a function builds it must take down."""
    shared = SharedRanks()
    try:
        yield shared
    finally:
        shared.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `matrix` unless the marker is named on the command line."""
    if "matrix" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("matrix")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
