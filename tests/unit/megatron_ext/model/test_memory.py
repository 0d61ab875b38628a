"""Tensors kept from pass to pass, in one graph and by leaves."""

import pytest
import torch
from torch import Tensor

from megatron_ext.model.memory import PassMemory

both_ways = pytest.mark.parametrize("by_leaves", [False, True], ids=["one graph", "leaves"])


def gradient_of_a_chain(memory: PassMemory, weight: Tensor) -> Tensor:
    """Use what the first pass has kept in two later passes, and further in the first."""
    kept = memory.keep("first", weight * 3.0)
    handed = kept * kept
    second = memory.keep("second", handed * memory.recall("first"))
    third = second + memory.recall("first").exp() * memory.recall("second")
    third.sum().backward()
    gradient = weight.grad
    assert gradient is not None
    return gradient


@both_ways
def test_all_later_uses_reach_what_was_kept(by_leaves: bool) -> None:
    weight = torch.tensor([0.2, -0.7], dtype=torch.float64, requires_grad=True)
    plain = weight.detach().clone().requires_grad_()
    first = plain * 3.0
    second = first**3
    (second + first.exp() * second).sum().backward()

    gradient = gradient_of_a_chain(PassMemory(by_leaves=by_leaves), weight)

    torch.testing.assert_close(gradient, plain.grad)


@both_ways
def test_what_a_pass_itself_makes_no_use_of_has_its_gradient_all_the_same(by_leaves: bool) -> None:
    weight = torch.tensor([0.2, -0.7], dtype=torch.float64, requires_grad=True)
    memory = PassMemory(by_leaves=by_leaves)
    handed = memory.keep("hidden", torch.ones(2, dtype=torch.float64, requires_grad=True) * 2.0)
    handed = memory.keep_aside("decision", weight.exp(), handed)
    later = handed.detach().requires_grad_() if by_leaves else handed

    (later * memory.recall("decision") * memory.recall("hidden")).sum().backward()
    if by_leaves:
        # The backward of the later pass has finished; that of this one starts from what it handed on.
        handed.backward(later.grad)

    torch.testing.assert_close(weight.grad, 4.0 * weight.detach().exp())


def test_a_leaf_cuts_the_graph() -> None:
    weight = torch.ones(2, requires_grad=True)
    memory = PassMemory(by_leaves=True)
    memory.keep("hidden", weight * 2.0)

    recalled = memory.recall("hidden")

    assert recalled.is_leaf
    assert recalled.requires_grad
    assert torch.equal(recalled, weight * 2.0)


def test_a_recomputed_pass_keeps_the_first_leaf() -> None:
    # Activation recompute runs a pass first without a graph, then, in backward, with one.
    weight = torch.ones(2, requires_grad=True)
    memory = PassMemory(by_leaves=True)
    with torch.no_grad():
        memory.keep("hidden", weight * 2.0)
    leaf = memory.recall("hidden")
    (leaf * 5.0).sum().backward()

    again = memory.keep("hidden", weight * 2.0)
    again.sum().backward()

    assert memory.recall("hidden") is leaf
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0 * (1.0 + 5.0)] * 2


def test_a_gradient_is_added_once() -> None:
    weight = torch.ones(1, requires_grad=True)
    memory = PassMemory(by_leaves=True)
    kept = memory.keep("hidden", weight * 1.0)
    memory.recall("hidden").sum().backward()

    (kept + kept).sum().backward()

    assert weight.grad is not None
    assert weight.grad.item() == 3.0
    assert memory.recall("hidden").grad is None


@both_ways
def test_what_is_noted_carries_no_gradient(by_leaves: bool) -> None:
    memory = PassMemory(by_leaves=by_leaves)

    memory.note("thoughts", torch.ones(2, requires_grad=True) * 2.0)

    assert not memory.recall("thoughts").requires_grad
    assert memory.recall("thoughts").tolist() == [2.0, 2.0]


@both_ways
def test_recalling_what_no_pass_kept_raises(by_leaves: bool) -> None:
    with pytest.raises(KeyError, match="hidden"):
        PassMemory(by_leaves=by_leaves).recall("hidden")
