"""A fixture: the layout of one rank in this process, for the tests of a module."""

from collections.abc import Iterator

import pytest

from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks


@pytest.fixture(scope="module")
def groups() -> Iterator[ParallelGroups]:
    """Start the layout, and leave no process group behind."""
    start_process_group(Ranks.from_environment({}), timeout_seconds=60)
    try:
        yield initialize_groups()
    finally:
        destroy_groups()
        stop_process_group()
