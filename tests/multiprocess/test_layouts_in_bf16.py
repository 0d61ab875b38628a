"""In bf16 a layout differs from one process only by rounding.

The bands are of a tensor: largest absolute difference over largest absolute value. Between bf16 and float32
in one process these models differ by up to 0.1 in gradients.
"""

import pytest

from tests.support.layout_steps import compare_with_references, write_references
from tests.support.layouts import Case
from tests.support.ranks import SharedRanks, run_alone
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.multiprocess


def _case(model: str, layout: str, *, recompute: str = "none", sweeps: str | None = None) -> Case:
    return Case(model=model, layout=layout, recompute=recompute, sweeps=sweeps, precision="bf16")


# Stages and replicas add up the same gradients in another order.
STAGES_AND_REPLICAS = [
    _case("loop, neox", "PP2", recompute="full"),
    _case("ponderlm3, neox softmax", "PP4", sweeps="3"),
    _case("ponderlm3, llama", "DP2xPP2", recompute="full", sweeps="1"),
    _case("adaponderlm, llama", "DP2xPP2"),
]
LARGEST_ERROR = 2e-2
# The forward rounds differently too. AdaPonderLM is missing because its halting is a hard decision: a token
# that decides differently changes gradients by half, as it does between bf16 and float32 in one process.
TENSOR_AXIS = [
    _case("vanilla, llama", "TP2"),
    _case("ponderlm, llama", "TP2+SPxPP2", recompute="full"),
    _case("ponderlm3, llama", "TP2+SPxPP2", recompute="selective", sweeps="1"),
]
LARGEST_ERROR_ON_TENSOR_AXIS, LARGEST_LOSS_ERROR_ON_TENSOR_AXIS = 0.2, 2e-3


@pytest.fixture(scope="module")
def side_by_side(ranks: SharedRanks, tmp_path_factory: pytest.TempPathFactory) -> SideBySide[Case]:
    file = tmp_path_factory.mktemp("references") / "steps.pt"
    cases = [*STAGES_AND_REPLICAS, *TENSOR_AXIS]
    run_alone(write_references, sorted({(case.model, case.precision) for case in cases}), file)
    return SideBySide(cases, compare_with_references, file, ranks)


@pytest.mark.parametrize("case", STAGES_AND_REPLICAS, ids=str)
def test_stages_and_replicas_have_the_same_forward_and_rounded_gradients(
    case: Case, side_by_side: SideBySide[Case]
) -> None:
    for found in side_by_side.compared(case):
        assert not found.complaint(LARGEST_ERROR)
        assert not found.complaint(1e-6, among="loss")
        assert not found.complaint(1e-6, among="sum")


@pytest.mark.parametrize("case", TENSOR_AXIS, ids=str)
def test_the_tensor_axis_rounds_forward_and_gradients(case: Case, side_by_side: SideBySide[Case]) -> None:
    for found in side_by_side.compared(case):
        assert not found.complaint(LARGEST_ERROR_ON_TENSOR_AXIS)
        assert not found.complaint(LARGEST_LOSS_ERROR_ON_TENSOR_AXIS, among="loss")
