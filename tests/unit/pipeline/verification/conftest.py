"""One rank of a process group, for tests that build models."""

from collections.abc import Iterator

import pytest

from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks


@pytest.fixture(scope="module")
def groups() -> Iterator[ParallelGroups]:
    """A layout of one rank."""
    start_process_group(Ranks.from_environment({}), timeout_seconds=60)
    try:
        yield initialize_groups()
    finally:
        destroy_groups()
        stop_process_group()
