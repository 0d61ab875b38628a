"""Cross-entropy and mixtures part by part, on one rank, against those of whole distributions."""

import pytest
import torch
from torch import Tensor

from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.tensor import TensorAxis
from megatron_ext.parallel.vocabulary import IGNORED_LABEL, mix_embeddings, token_losses
from megatron_ext.parallel.vocabulary_in_parts import cross_entropy_in_place, mix_in_parts
from megatron_ext.ponder import parts as parts_module
from megatron_ext.ponder.parts import parts

ROWS, BATCH, HIDDEN, PIECES, PADDED = 5, 2, 6, 11, 14


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows at a time, so that ten make parts of two sizes."""
    monkeypatch.setattr(parts_module, "PART_ELEMENTS", 3 * PADDED)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def test_parts_cover_all_rows_once() -> None:
    assert list(parts(10, PADDED)) == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    assert list(parts(2, 100 * PADDED)) == [slice(0, 1), slice(1, 2)]


def inputs_of_mixture(dtype: torch.dtype) -> list[Tensor]:
    return [
        random(ROWS, BATCH, HIDDEN, dtype=dtype),
        random(PADDED, HIDDEN, dtype=dtype, seed=1),
        random(PADDED, HIDDEN, dtype=dtype, seed=2),
    ]


def outcome(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    along = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, inputs, along.to(output.dtype))]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize(("topk", "temperature"), [(None, 1.0), (3, 1.0), (None, 0.5), (20, 2.0)])
def test_a_mixture_in_parts_is_the_mixture(
    groups: ParallelGroups, topk: int | None, temperature: float, dtype: torch.dtype, tolerance: float
) -> None:
    inputs, axis = inputs_of_mixture(dtype), TensorAxis(groups.tp, False)

    wanted = outcome(
        mix_embeddings(*inputs, vocab_size=PIECES, topk=topk, axis=axis, temperature=temperature), inputs
    )
    found = outcome(
        mix_in_parts(*inputs, num_real=PIECES, topk=topk, axis=axis, temperature=temperature), inputs
    )

    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert float((one - other).abs().max()) <= tolerance * max(float(other.abs().max()), 1.0)


def test_the_gradient_of_a_mixture_is_that_of_finite_differences(groups: ParallelGroups) -> None:
    axis = TensorAxis(groups.tp, False)

    assert torch.autograd.gradcheck(
        lambda *given: mix_in_parts(*given, num_real=PIECES, topk=None, axis=axis, temperature=0.7),
        inputs_of_mixture(torch.float64),
    )


def test_a_tied_and_a_frozen_weight_have_their_gradients(groups: ParallelGroups) -> None:
    rows, weight, frozen = inputs_of_mixture(torch.float64)
    frozen.requires_grad_(False)
    axis = TensorAxis(groups.tp, False)

    for head, embedding, used in ((weight, weight, [rows, weight]), (frozen, weight, [rows, weight])):
        wanted = mix_embeddings(rows, head, embedding, vocab_size=PIECES, topk=None, axis=axis)
        found = mix_in_parts(rows, head, embedding, num_real=PIECES, topk=None, axis=axis)
        for one, other in zip(outcome(found, used), outcome(wanted, used), strict=True):
            torch.testing.assert_close(one, other)


def test_gradients_of_a_mixture_go_to_the_sums_of_the_weights(groups: ParallelGroups) -> None:
    rows, head, embedding = inputs_of_mixture(torch.bfloat16)
    sums = [torch.ones(PADDED, HIDDEN) for _ in range(2)]
    head.main_grad, embedding.main_grad = sums  # type: ignore[attr-defined]  # as Megatron gives it
    mixed = mix_in_parts(
        rows, head, embedding, num_real=PIECES, topk=None, axis=TensorAxis(groups.tp, False), accumulates=True
    )
    mixed.sum().backward()
    exact = [each.detach().double().requires_grad_() for each in (rows, head, embedding)]
    mix_embeddings(*exact, vocab_size=PIECES, topk=None, axis=TensorAxis(groups.tp, False)).sum().backward()

    assert head.grad is None
    assert embedding.grad is None
    for total, one in zip(sums, exact[1:], strict=True):
        assert one.grad is not None
        torch.testing.assert_close(total.double() - 1, one.grad, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_cross_entropy_in_place_is_that_of_float64(groups: ParallelGroups, dtype: torch.dtype) -> None:
    logits = random(ROWS, BATCH, PADDED, dtype=dtype)
    targets = torch.arange(ROWS * BATCH).view(ROWS, BATCH) % PIECES
    hidden = logits.detach().clone()
    hidden[..., PIECES:] = float("-inf")
    exact = hidden.double().requires_grad_()
    axis = TensorAxis(groups.tp, False)
    along = torch.linspace(-1, 2, ROWS * BATCH).view(ROWS, BATCH)

    found = cross_entropy_in_place(hidden.clone().requires_grad_(), targets, axis)
    losses = token_losses(exact, targets, axis)
    (of_exact,) = torch.autograd.grad(losses, exact, along.double())
    given = hidden.requires_grad_()
    of_losses = along.to(found.dtype)
    (of_found,) = torch.autograd.grad(cross_entropy_in_place(given, targets, axis), given, of_losses)

    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), losses, rtol=1e-5, atol=1e-5)
    assert of_found.dtype == dtype
    assert float((of_found.double() - of_exact).abs().max()) <= 2 * torch.finfo(dtype).eps
    assert not of_found[..., PIECES:].any()


def test_labels_that_do_not_count_have_neither_loss_nor_gradient(groups: ParallelGroups) -> None:
    logits = random(ROWS, BATCH, PADDED, dtype=torch.bfloat16)
    labels = torch.full((ROWS, BATCH), IGNORED_LABEL)
    labels[2, 1] = 4
    losses = token_losses(logits, labels, TensorAxis(groups.tp, False), fuses=True)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)

    assert losses.count_nonzero() == 1
    assert gradient.abs().sum(dim=-1).count_nonzero() == 1
