"""Ranks that the tests of several processes share."""

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
