"""The self-test of fused functions, with what torch.compile captures of them; no code is generated."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from megatron_ext.model import fused_layers
from megatron_ext.model.cheap_work import cheap, recomputing_cheap_work
from megatron_ext.model.fused_check import check_fused
from megatron_ext.model.kernels import LARGEST_RATIO
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method
from megatron_ext.ponder.fusing import compile_fused, is_compiling
from tests.support.ponder_models import tiny_model

CPU = torch.device("cpu")


class Captured:
    """A backend of torch.compile that counts what it is given, and runs it operation by operation."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        del inputs
        self.num_graphs += 1
        return graph.forward


@pytest.fixture
def captured() -> Iterator[Captured]:
    backend = Captured()
    counters.clear()
    compile_fused(backend)
    try:
        yield backend
    finally:
        compile_fused(None)
        torch.compiler.reset()


@pytest.mark.parametrize(
    ("method", "architecture", "functions"),
    [
        (Method.ADAPONDERLM, "llama", {"gated activation", "mixture"}),
        (Method.PONDERLM3, "gpt_neox", {"activation"}),
    ],
)
def test_captured_functions_are_as_near_to_float64_as_separate_operations(
    groups: ParallelGroups, captured: Captured, method: Method, architecture: str, functions: set[str]
) -> None:
    config = tiny_model(groups, method, architecture, dtype=torch.bfloat16).config
    errors = check_fused(config, 2, CPU)

    assert is_compiling()
    assert errors.keys() == functions | {"norm", "sum", "heads", "cross-entropy"}
    assert max(errors.values()) <= LARGEST_RATIO
    assert captured.num_graphs > 10
    # Each function is one graph.
    assert not counters["graph_break"]


def test_a_wrong_function_is_found(groups: ParallelGroups, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_model(groups, Method.VANILLA, dtype=torch.bfloat16).config
    assert max(check_fused(config, 2, CPU).values()) <= LARGEST_RATIO
    right = fused_layers._gated_silu_gradient
    monkeypatch.setattr(fused_layers, "_gated_silu_gradient", lambda *given: right(*given) * 1.1)

    assert check_fused(config, 2, CPU)["gated activation"] > LARGEST_RATIO


def test_passes_of_many_sizes_are_compiled_twice(captured: Captured) -> None:
    for num_rows in (8, 16, 24, 32, 40):
        inner = torch.randn(num_rows, 2, 12, requires_grad=num_rows != 24)
        with torch.set_grad_enabled(num_rows != 32):
            fused_layers.gated_silu(inner)

    # With the sizes of the first pass, and with any number of rows.
    assert captured.num_graphs == 2


def test_what_runs_again_in_backward_is_not_compiled_again(captured: Captured) -> None:
    for is_on in (False, True):
        inner = torch.randn(8, 2, 12, requires_grad=True)
        with recomputing_cheap_work(is_on):
            (cheap(fused_layers.gated_silu, inner) ** 2).sum().backward()  # type: ignore[no-untyped-call]

        # Forward and backward.
        assert captured.num_graphs == 2
