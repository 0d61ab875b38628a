"""Fixtures of the tests on several ranks."""

from collections.abc import Iterator

import pytest

from tests.support.ranks import SharedRanks
from tests.support.tiny_run import recipe

__all__ = ["ranks", "recipe"]


@pytest.fixture(scope="session")
def ranks() -> Iterator[SharedRanks]:
    """Run functions on ranks that live as long as the tests; what a function builds it must take down."""
    shared = SharedRanks()
    try:
        yield shared
    finally:
        shared.close()
