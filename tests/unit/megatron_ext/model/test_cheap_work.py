"""Cheap work that backward does again: gradients are bit for bit those of keeping it, and less is kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.model.cheap_work import cheap, recomputing_cheap_work
from megatron_ext.model.config import Architecture
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Mixture
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from tests.bench.live_memory import LiveMemory
from tests.support.ponder_models import AUTHORS, batch_of, each_model, gradients_of, random_tokens, tiny_model

# Two texts of one document, and two of several: their attention keeps other tensors.
WHOLE = batch_of(random_tokens(2, 9))
PACKED = batch_of(random_tokens(2, 9), torch.tensor([[0] * 4 + [1] * 5, [0] * 7 + [PADDING_DOCUMENT] * 2]))


def counted(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[bool]]:
    """A function, and for each of its calls whether there was a graph."""
    calls: list[bool] = []

    def run(*inputs: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return function(*inputs)

    return run, calls


def both(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.exp(), values.sin()


def test_results_are_computed_again_once_for_all_that_keep_them() -> None:
    values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    run, calls = counted(both)

    with recomputing_cheap_work(True):
        first, second = cheap(run, values)
        # Both factors of a product are kept, and a view of one of them.
        loss = (first * second).sum() + (first[1:].t() ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, values)

    first, second = both(values)
    (wanted,) = torch.autograd.grad((first * second).sum() + (first[1:].t() ** 2).sum(), values)
    assert calls == [True, False]
    assert torch.equal(gradient, wanted)


def test_a_kept_graph_computes_results_again_in_each_backward() -> None:
    values = torch.randn(5, requires_grad=True)
    run, calls = counted(torch.sin)
    with recomputing_cheap_work(True):
        loss = (cheap(run, values) ** 2).sum()

    first, second = (torch.autograd.grad(loss, values, retain_graph=True)[0] for _ in range(2))

    assert len(calls) == 3
    assert torch.equal(first, second)


def test_a_result_that_is_a_view_of_what_it_comes_from_is_kept() -> None:
    values = torch.randn(5, 2, requires_grad=True)
    run, calls = counted(lambda each: each.t())
    with recomputing_cheap_work(True):
        (cheap(run, values) ** 2).sum().backward()  # type: ignore[no-untyped-call]

    assert calls == [True]


@pytest.mark.parametrize("settings", [(False, True), (True, False)])
def test_without_a_graph_or_the_setting_nothing_runs_again(settings: tuple[bool, bool]) -> None:
    is_on, has_graph = settings
    values = torch.randn(5, requires_grad=True)
    run, calls = counted(torch.sin)
    with torch.set_grad_enabled(has_graph), recomputing_cheap_work(is_on):
        loss = (cheap(run, values) ** 2).sum()
    if has_graph:
        loss.backward()  # type: ignore[no-untyped-call]

    assert calls == [has_graph]


def test_what_is_not_asked_for_again_is_not_held() -> None:
    """Neither the results, nor in a cycle the operations that keep results of their own."""
    with LiveMemory() as memory:
        values = torch.zeros(1000, requires_grad=True)
        before = memory.live_bytes
        with recomputing_cheap_work(True):
            # Of this chain the exponential keeps its own result, and the product only what makes the sine.
            loss = (functional.silu(cheap(torch.sin, values.exp())) * 2).sum()
        held = memory.live_bytes - before
        del loss
        assert memory.live_bytes == before
    assert held < 1.5 * values.nbytes


def assert_same_bits(groups: ParallelGroups, *arguments: Any, **settings: Any) -> None:
    plain, again = (
        tiny_model(groups, *arguments, recompute_cheap_work=is_on, **settings) for is_on in (False, True)
    )
    for batch in (WHOLE, PACKED):
        wanted, found = (gradients_of(model, batch) for model in (plain, again))
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert torch.equal(found[name], gradient), name


@each_model
def test_gradients_are_those_of_keeping_everything(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    assert_same_bits(groups, method, architecture, dtype=torch.float32, fuses=True)


@pytest.mark.parametrize("architecture", list(Architecture))
@pytest.mark.parametrize("method", [Method.PONDERLM3, Method.ADAPONDERLM])
def test_gradients_of_separate_operations_are_too(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    assert_same_bits(groups, method, architecture, dtype=torch.float32, fuses=False)


@pytest.mark.parametrize("architecture", list(Architecture))
@pytest.mark.parametrize("ponder", [AUTHORS, {"mixture": Mixture.SOFTMAX}])
def test_it_is_right_in_other_forms(
    groups: ParallelGroups, architecture: Architecture, ponder: dict[str, Any]
) -> None:
    assert_same_bits(groups, Method.PONDERLM3, architecture, dtype=torch.bfloat16, ponder=ponder, fuses=True)
