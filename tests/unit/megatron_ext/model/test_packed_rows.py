"""Training without the rows of pruned slots, against the oracle, a twin that runs all, and its bound."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.model import model as model_module
from megatron_ext.model.config import Architecture
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.model.packed_rows import PackedRows, pack_rows
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.attention import Segments
from megatron_ext.ponder.config import Method, Mixture, Penalty, RouterForm
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from megatron_ext.ponder.slots import merge_slots, slots_up_to
from megatron_ext.weights import whole_tensors
from tests.support.ponder_models import (
    RECOMPUTE,
    VOCAB_SIZE,
    batch_of,
    each_backbone,
    gradients_of,
    halting_tokens,
    mean_loss,
    oracle_results,
    random_tokens,
    tiny_model,
)

LENGTH, NUM_THOUGHTS = 7, 2
SWEEPS = NUM_THOUGHTS * (LENGTH - 1)
TOKENS = halting_tokens(LENGTH)
EXACT = 1e-9
PACKED = batch_of(
    torch.cat([random_tokens(1, 9), halting_tokens()]),
    torch.tensor([[0] * 4 + [1] * 5, [0] * 7 + [PADDING_DOCUMENT] * 2]),
)
WHOLE = batch_of(torch.cat([random_tokens(1, 9), halting_tokens()]))


def model_of(groups: ParallelGroups, *arguments: Any, **settings: Any) -> PonderModel:
    return tiny_model(groups, Method.PONDERLM3, *arguments, **settings)


def skipping(model: PonderModel, batch: TokenBatch, **settings: Any) -> dict[str, Tensor]:
    """Return the gradients by parameter, and the losses of tokens."""
    with torch.no_grad():
        output = model(batch, **{"num_jacobi_iterations": 2, "skips_pruned_rows": True, **settings})
    return gradients_of(model, batch, skips_pruned_rows=True, **settings) | {"losses": output.token_losses}


@each_backbone
def test_enough_sweeps_train_what_decoding_computes(
    groups: ParallelGroups, architecture: Architecture
) -> None:
    model = model_of(groups, architecture)
    weights = {
        name: value.detach().clone().requires_grad_()
        for name, value in whole_tensors(model, lambda weight: weight).items()
    }
    results = oracle_results(model, TOKENS[0].tolist(), weights=weights)
    logits = torch.stack([result.logits for result in results])
    wanted = functional.cross_entropy(logits[:-1], TOKENS[0, 1:])
    wanted.backward()

    output = model(batch_of(TOKENS), num_jacobi_iterations=SWEEPS, skips_pruned_rows=True)
    loss = mean_loss(output, batch_of(TOKENS))
    loss.backward()

    assert output.steps is not None
    assert output.steps[:, 0].tolist() == [result.steps for result in results]
    assert len({result.steps for result in results}) > 1, "tokens must differ in their steps"
    assert loss.item() == pytest.approx(wanted.item(), abs=EXACT)
    found = whole_tensors(model, lambda weight: weight.grad)
    for name, weight in weights.items():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=EXACT, msg=name)


def all_rows(last_slot: Tensor, num_slots: int, segments: Segments | None) -> PackedRows:
    """The rows of a pass with none left out: what hides pruned ones is only the weight of their keys."""
    runs = merge_slots(slots_up_to(last_slot, num_slots))
    order = torch.arange(runs.shape[0]).unsqueeze(1).expand_as(runs)
    if segments is not None:
        segments = tuple(
            tuple((start * num_slots, stop * num_slots) for start, stop in row) for row in segments
        )
    return PackedRows(
        order=order,
        runs=torch.ones_like(runs),
        num_rows=runs.shape[0],
        num_slots=num_slots,
        segments=segments,
    )


def assert_as_with_all_rows(
    model: PonderModel, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> None:
    found = skipping(model, batch, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(model_module, "pack_rows", all_rows)
        wanted = skipping(model, batch, **settings)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        difference = (found[name] - value).abs().max()
        assert difference <= 1e-12 * max(float(value.abs().max()), 1e-3), name


@each_backbone
@pytest.mark.parametrize("batch", [PACKED, WHOLE], ids=["documents", "whole"])
@pytest.mark.parametrize("gradient_passes", [None, 2])
def test_leaving_rows_out_is_hiding_them(
    groups: ParallelGroups,
    architecture: Architecture,
    batch: TokenBatch,
    gradient_passes: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(groups, architecture)

    assert_as_with_all_rows(model, batch, monkeypatch, gradient_passes=gradient_passes)


@pytest.mark.parametrize(
    ("ponder", "settings"),
    [
        ({"mixture": Mixture.SOFTMAX}, {}),
        ({"penalty": Penalty.CE_LOSS}, {}),
        ({"form": RouterForm(pre_pass=True, router_damping=0.4, attention_scale_extra=8)}, {}),
        ({}, {"pondering_share": 0.5}),
        ({}, {"sweep_tolerance": 0.1}),
    ],
)
def test_it_is_in_every_variant(
    groups: ParallelGroups,
    ponder: dict[str, Any],
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_as_with_all_rows(model_of(groups, ponder=ponder), PACKED, monkeypatch, **settings)


@pytest.mark.parametrize("kind", RECOMPUTE)
def test_recompute_changes_no_gradient(groups: ParallelGroups, kind: str) -> None:
    wanted = skipping(model_of(groups), PACKED)

    found = skipping(model_of(groups, **RECOMPUTE[kind]).train(), PACKED)

    for name, value in wanted.items():
        assert (found[name] - value).abs().max() <= 1e-12 * value.abs().max(), name


@each_backbone
def test_what_it_changes_is_proportional_to_tau(groups: ParallelGroups, architecture: Architecture) -> None:
    errors = []
    for threshold in (1e-2, 1e-3, 1e-4):
        model = model_of(groups, architecture, num_latent_thoughts=3, ponder={"pruning_threshold": threshold})
        with torch.no_grad():
            # Less sure than the usual ones, so that some tail masses lie between any two thresholds.
            batch = batch_of(random_tokens(4, 24))
            whole, kept = (
                model(batch, num_jacobi_iterations=3, skips_pruned_rows=skips) for skips in (False, True)
            )
        assert kept.statistics["thought_rows_run"] < kept.statistics["thought_rows"]
        errors.append(float((whole.token_losses - kept.token_losses).abs().max()) / threshold)

    assert max(errors) < 5
    assert min(errors) > 0


def test_rows_that_run_are_counted(groups: ParallelGroups) -> None:
    model = model_of(groups)
    rows: list[int] = []
    model.decoder.layers[0].register_forward_pre_hook(
        lambda module, inputs, named: rows.append(named["hidden_states"].shape[:2].numel()),
        with_kwargs=True,
    )

    with torch.no_grad():
        output = model(WHOLE, num_jacobi_iterations=2, skips_pruned_rows=True)

    num_tokens = WHOLE.tokens.numel()
    slots = model.ponder.plan(2).slots
    assert sum(rows) == len(slots) * num_tokens + output.statistics["thought_rows_run"].item()
    assert output.statistics["thought_rows"].item() == (sum(slots) - len(slots)) * num_tokens
    assert sum(rows) < 0.9 * sum(slots) * num_tokens


def test_a_slot_that_comes_back_grows_from_the_one_before_it(groups: ParallelGroups) -> None:
    model = model_of(groups, num_latent_thoughts=3)
    method = model.ponder
    micro_batch = model.begin(
        WHOLE, model_module.ForwardSettings(num_jacobi_iterations=2, skips_pruned_rows=True)
    )
    context = micro_batch.context
    mass = torch.ones(9, 4, 2)
    mass[0, 1:] = 0.0

    context.last_slot = torch.zeros(9, 2, dtype=torch.int64)
    context.last_slot[1] = 2

    last = method._last_slots(mass, 3, context)  # type: ignore[operator]
    assert last[0].tolist() == [0, 0]
    assert last[1].tolist() == [3, 3]
    assert last[2].tolist() == [1, 1]
    # The first passes have room for fewer thoughts.
    assert method._last_slots(mass, 2, context)[1].tolist() == [2, 2]  # type: ignore[operator]


def test_padding_runs_no_thoughts(groups: ParallelGroups) -> None:
    model = model_of(groups)
    labels = PACKED.labels.clone()
    other = replace(PACKED, labels=labels, tokens=PACKED.tokens.clone())
    other.tokens[1, 7:] = (other.tokens[1, 7:] + 1) % VOCAB_SIZE

    one, two = skipping(model, PACKED), skipping(model, other)

    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-13, msg=name)


def test_packing_by_hand() -> None:
    # Two sequences of three tokens with last slots 0, 2, 1 and 0, 0, 1, of three slots each.
    last_slot = torch.tensor([[0, 0], [2, 0], [1, 1]])

    packed = pack_rows(last_slot, 3, (((0, 2), (2, 3)), ((0, 3),)))

    assert packed.order[:, 0].tolist() == [0, 3, 4, 5, 6, 7]
    assert packed.order[:4, 1].tolist() == [0, 3, 6, 7]
    assert packed.runs[:, 1].tolist() == [True] * 4 + [False] * 2
    assert packed.segments == (((0, 4), (4, 6)), ((0, 4), (4, 6)))
    assert packed.positions(torch.tensor([[5, 6, 7], [0, 1, 2]]))[0].tolist() == [5, 6, 6, 6, 7, 7]
    rows = torch.arange(36.0).reshape(9, 2, 2).requires_grad_()
    unpacked = packed.put(packed.take(rows))
    runs = merge_slots(slots_up_to(last_slot, 3)).unsqueeze(-1)
    assert torch.equal(unpacked, torch.where(runs, rows, 0.0))
    unpacked.sum().backward()
    assert torch.equal(rows.grad, runs.expand_as(rows).to(rows.dtype))
