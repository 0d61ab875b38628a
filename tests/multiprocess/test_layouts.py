"""Loss, statistics and every gradient are the same on every layout as in one process.

The gradients are those that the optimizer reads after Megatron's schedule has run four micro-batches of
packed documents, forward and backward, and all reductions are done. The cases are a pairwise subset of the
matrix of methods, layouts, recompute and J; `make test-matrix` runs the full matrix.
"""

from pathlib import Path

import pytest

from tests.support.layout_steps import Compared, compare_with_references
from tests.support.layouts import Case, matrix
from tests.support.pairwise import covering_subset
from tests.support.ranks import SharedRanks
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.multiprocess

# Of a tensor: largest absolute difference over largest absolute value, in float32.
LARGEST_ERROR = 2e-5
MATRIX = matrix()
SUBSET = covering_subset({case: case.shows for case in MATRIX})


@pytest.fixture(scope="module")
def subset(ranks: SharedRanks, references: Path) -> SideBySide[Case]:
    return SideBySide(SUBSET, compare_with_references, references, ranks)


@pytest.fixture(scope="module")
def whole_matrix(ranks: SharedRanks, references: Path) -> SideBySide[Case]:
    return SideBySide(MATRIX, compare_with_references, references, ranks)


@pytest.mark.parametrize("case", SUBSET, ids=str)
def test_a_layout_computes_what_one_process_computes(case: Case, subset: SideBySide[Case]) -> None:
    _check(case, subset.compared(case))


@pytest.mark.matrix
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", MATRIX, ids=str)
def test_every_cell_of_the_matrix_equals_one_process(case: Case, whole_matrix: SideBySide[Case]) -> None:
    _check(case, whole_matrix.compared(case))


def _check(case: Case, by_rank: list[Compared]) -> None:
    for rank, found in enumerate(by_rank):
        complaint = found.complaint(LARGEST_ERROR) or found.complaint(0, among="start")
        assert not complaint, f"{case}, rank {rank}: {complaint}"
        assert found.zero == [], f"{case}: zero in one process"
