"""One rank of a process group, for tests that build models; hypothesis without clock and chance."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.distributed import start_process_group, stop_process_group
from pipeline.ranks import Ranks

# A busy machine must not fail a test, and a test must not fail by chance.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def groups() -> Iterator[ParallelGroups]:
    """Start the layout of one rank for the tests of a module and leave no process group behind."""
    start_process_group(Ranks.from_environment({}), timeout_seconds=60)
    try:
        yield initialize_groups()
    finally:
        destroy_groups()
        stop_process_group()
