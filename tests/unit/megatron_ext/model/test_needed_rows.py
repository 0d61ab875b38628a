"""Rows that nobody reads or that an earlier pass has, against the same passes with all rows computed."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.methods.base import PassContext, PonderMethod
from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Mixture
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from megatron_ext.ponder.passes import PassPlan, jacobi_plan
from tests.support.ponder_models import (
    AUTHORS,
    RECOMPUTE,
    batch_of,
    each_backbone,
    gradients_of,
    halting_tokens,
    random_tokens,
    tiny_model,
)

PACKED = batch_of(
    torch.cat([random_tokens(1, 9), halting_tokens()]),
    torch.tensor([[0] * 4 + [1] * 5, [0] * 7 + [PADDING_DOCUMENT] * 2]),
)
WHOLE = batch_of(random_tokens(2, 9))
SWEEPING = (Method.PONDERLM2, Method.PONDERLM3)


def results_of(model: PonderModel, batch: Any, **settings: Any) -> dict[str, Tensor]:
    """Gradients by parameter, and the losses of tokens."""
    with torch.no_grad():
        losses = model(batch, **{"num_jacobi_iterations": 2, **settings}).token_losses
    return gradients_of(model, batch, **settings) | {"losses": losses}


def all_rows_of(model: PonderModel, batch: Any, **settings: Any) -> dict[str, Tensor]:
    """The same with every row computed in every pass."""

    def every_slot(method: PonderMethod, index: int, context: PassContext) -> range:
        del method
        return range(context.plan.slots[index])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PonderMethod, "slots_read", every_slot)
        patch.setattr(PonderModel, "_repeated_slot", lambda *arguments: None)
        return results_of(model, batch, **settings)


def assert_same(model: PonderModel, batch: Any, **settings: Any) -> None:
    wanted, found = all_rows_of(model, batch, **settings), results_of(model, batch, **settings)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        difference = (found[name] - value).abs().max()
        assert difference <= 1e-12 * max(float(value.abs().max()), 1e-3), name


@each_backbone
@pytest.mark.parametrize("method", [Method.PAUSE, *SWEEPING])
@pytest.mark.parametrize("num_thoughts", [1, 3])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_what_is_left_out_changes_nothing(
    groups: ParallelGroups, method: Method, architecture: Architecture, num_thoughts: int, num_layers: int
) -> None:
    model = tiny_model(groups, method, architecture, num_latent_thoughts=num_thoughts, num_layers=num_layers)

    for batch in (PACKED, WHOLE):
        assert_same(model, batch)


@each_backbone
@pytest.mark.parametrize(
    ("method", "ponder"),
    [
        (Method.PONDERLM2, {"mixture": Mixture.SOFTMAX}),
        (Method.PONDERLM3, {"mixture": Mixture.TOP_K, "mixture_top_k": 7}),
        (Method.PONDERLM3, AUTHORS),
    ],
)
@pytest.mark.parametrize("gradient_passes", [None, 1, 2, 4])
def test_it_changes_nothing_in_variants_and_with_few_gradients(
    groups: ParallelGroups,
    method: Method,
    architecture: Architecture,
    ponder: dict[str, Any],
    gradient_passes: int | None,
) -> None:
    model = tiny_model(groups, method, architecture, ponder=ponder)

    assert_same(model, PACKED, gradient_passes=gradient_passes)


@each_backbone
@pytest.mark.parametrize("kind", RECOMPUTE)
@pytest.mark.parametrize("method", [Method.PAUSE, *SWEEPING])
def test_it_changes_nothing_under_recompute(
    groups: ParallelGroups, method: Method, architecture: Architecture, kind: str
) -> None:
    model = tiny_model(groups, method, architecture, **RECOMPUTE[kind]).train()
    gradient_passes = (None, 2) if method in SWEEPING else (None,)

    for number in gradient_passes:
        assert_same(model, PACKED, gradient_passes=number)


@pytest.mark.parametrize("method", [Method.PAUSE, *SWEEPING])
def test_it_changes_nothing_in_a_blended_start(groups: ParallelGroups, method: Method) -> None:
    assert_same(tiny_model(groups, method), PACKED, pondering_share=0.4)


@pytest.mark.parametrize("method", SWEEPING)
def test_it_changes_nothing_where_sweeps_end_early(groups: ParallelGroups, method: Method) -> None:
    model = tiny_model(groups, method)

    assert_same(model, PACKED, num_jacobi_iterations=6, sweep_tolerance=0.05, gradient_passes=2)


def rows_of_layers(model: PonderModel, batch: Any) -> dict[str, list[list[int]]]:
    """Rows per token of each product in each layer, call by call."""
    rows: dict[str, list[list[int]]] = {}
    for layer in model.decoder.layers:
        for name, module in (
            ("heads", layer.self_attention.linear_qkv),
            ("mlp", layer.mlp.linear_fc1),
        ):
            calls: list[int] = []
            rows.setdefault(name, []).append(calls)
            module.register_forward_pre_hook(
                lambda _, inputs, calls=calls: calls.append(inputs[0].shape[0] // batch.tokens.shape[1])
            )
    with torch.no_grad():
        model(batch, num_jacobi_iterations=2)
    return rows


@pytest.mark.parametrize(
    ("method", "architecture", "heads", "mlp"),
    [
        # K = 2, J = 2: passes of 1, 2, 3, 3 and 3 slots; three layers.
        ("ponderlm2", "gpt_neox", [[1, 1, 2, 2, 2], [1, 2, 3, 3, 3]], [[1, 1, 2, 2, 2], [1, 2, 2, 2, 1]]),
        ("ponderlm2", "llama", [[1, 1, 2, 2, 2], [1, 2, 3, 3, 3]], [[1, 2, 3, 3, 3], [1, 2, 2, 2, 1]]),
        ("ponderlm3", "gpt_neox", [[1, 1, 2, 2, 2], [1, 2, 3, 3, 3]], [[1, 1, 2, 2, 2], [1, 2, 2, 2, 3]]),
        ("pause", "llama", [[3], [3]], [[3], [1]]),
    ],
)
def test_first_and_last_layer_multiply_fewer_rows(
    groups: ParallelGroups, method: str, architecture: str, heads: list[list[int]], mlp: list[list[int]]
) -> None:
    model = tiny_model(groups, method, architecture, num_layers=3)

    rows = rows_of_layers(model, WHOLE)

    assert [rows["heads"][0], rows["heads"][2]] == heads
    assert [rows["mlp"][0], rows["mlp"][2]] == mlp
    slots = list(model.ponder.plan(2).slots)
    assert rows["heads"][1] == rows["mlp"][1] == slots


@pytest.mark.parametrize(
    ("method", "plan", "read"),
    [
        (Method.PONDERLM2, jacobi_plan(2, 1), [(0,), (0, 1), (0, 1), (2,)]),
        (Method.PONDERLM3, jacobi_plan(2, 1), [(0,), (0, 1), (0, 1), (0, 1, 2)]),
        (Method.PONDERLM2, jacobi_plan(0, 3), [(0,)]),
        (Method.PAUSE, PassPlan(slots=(3,)), [(2,)]),
        (Method.LOOP, PassPlan(slots=(1, 1)), [(0,), (0,)]),
    ],
)
def test_the_slots_that_are_read(method: Method, plan: PassPlan, read: list[tuple[int, ...]]) -> None:
    assert [tuple(method.facts.slots_read(index, plan)) for index in range(plan.num_passes)] == read
