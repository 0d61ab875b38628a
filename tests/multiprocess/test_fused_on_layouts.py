"""What CUDA gets, fused functions and gradients that are summed inside of products, on several ranks.

It runs without a compiler, in float32; one process computes the same operation by operation.
"""

from pathlib import Path

import pytest

from tests.support.layout_steps import compare_fused_with_references
from tests.support.layouts import Case
from tests.support.ranks import SharedRanks
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.multiprocess

LARGEST_ERROR = 2e-5
CASES = [
    Case(model="ponderlm3, neox tied", layout="TP2", recompute="none", sweeps="3"),
    Case(model="adaponderlm, neox tied top-k", layout="TP2", recompute="full", sweeps=None),
    Case(model="ponderlm, neox", layout="TP2+SPxPP2", recompute="selective", sweeps=None),
    Case(model="ponderlm3, neox softmax", layout="TP2+SPxPP2", recompute="per_pass", sweeps="random"),
    Case(model="ponderlm3, llama", layout="CP2", recompute="selective", sweeps="3"),
]


@pytest.fixture(scope="module")
def side_by_side(ranks: SharedRanks, references: Path) -> SideBySide[Case]:
    return SideBySide(CASES, compare_fused_with_references, references, ranks)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fused_functions_compute_on_a_layout_what_one_process_computes(
    case: Case, side_by_side: SideBySide[Case]
) -> None:
    for rank, found in enumerate(side_by_side.compared(case)):
        complaint = found.complaint(LARGEST_ERROR) or found.complaint(0, among="start")
        assert not complaint, f"{case}, rank {rank}: {complaint}"
        assert found.zero == []
