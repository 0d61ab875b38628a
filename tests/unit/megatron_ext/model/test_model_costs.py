"""Rows that run through the layers, per token (definitions 5)."""

from collections.abc import Callable

import pytest
import torch

from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method
from tests.support.ponder_models import (
    batch_of,
    decode_one_by_one,
    each_backbone,
    each_method,
    each_model,
    halting_tokens,
    random_tokens,
    tiny_model,
)

LENGTH = 5
TRAINING_ROWS: dict[Method, Callable[[int, int], int]] = {
    Method.VANILLA: lambda k, j: 1,
    Method.LOOP: lambda k, j: k + 1,
    Method.PAUSE: lambda k, j: k + 1,
    Method.PONDERLM: lambda k, j: k + 1,
    Method.ADAPONDERLM: lambda k, j: k + 1,
    Method.PONDERLM2: lambda k, j: sum(range(1, k + 1)) + (j + 1) * (k + 1),
    Method.PONDERLM3: lambda k, j: sum(range(1, k + 1)) + (j + 1) * (k + 1),
    Method.ADAPTIVE_LATENT_COT: lambda k, j: k + 1,
}


def count_rows(model: PonderModel) -> list[list[int]]:
    """Collect, for each layer, the rows that enter every call."""
    rows: list[list[int]] = [[] for _ in model.decoder.layers]
    for layer, calls in zip(model.decoder.layers, rows, strict=True):
        layer.register_forward_pre_hook(
            lambda module, inputs, named, calls=calls: calls.append(named["hidden_states"].shape[0]),
            with_kwargs=True,
        )
    return rows


@each_model
@pytest.mark.parametrize(("num_thoughts", "sweeps"), [(1, 0), (2, 3), (3, 1)])
def test_training_runs_the_expected_rows(
    groups: ParallelGroups, method: Method, architecture: Architecture, num_thoughts: int, sweeps: int
) -> None:
    model = tiny_model(groups, method, architecture, num_latent_thoughts=num_thoughts)
    rows = count_rows(model)

    with torch.no_grad():
        model(batch_of(random_tokens(2, LENGTH)), num_jacobi_iterations=sweeps)

    plan = model.ponder.plan(sweeps)
    assert rows == [[LENGTH * slots for slots in plan.slots]] * 2
    assert sum(rows[0]) / LENGTH == TRAINING_ROWS[method](num_thoughts, sweeps) == plan.rows_per_token


@each_method
@pytest.mark.parametrize("num_thoughts", [0, 1, 4])
def test_a_plan_knows_its_rows(groups: ParallelGroups, method: Method, num_thoughts: int) -> None:
    ponder = tiny_model(groups, method, num_latent_thoughts=num_thoughts).ponder

    expected = TRAINING_ROWS[method](num_thoughts, 2) if num_thoughts else 1
    assert ponder.plan(2).rows_per_token == expected


@each_method
@each_backbone
def test_decoding_runs_one_row_for_each_step_taken(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture)
    tokens = halting_tokens()[0].tolist()
    rows = count_rows(model)

    _, steps, _ = decode_one_by_one(model, tokens)

    assert rows == [[1] * sum(1 + extra for extra in steps)] * 2
    if method.halts:
        assert len(set(steps)) > 1
    else:
        assert set(steps) == {model.config.ponder.num_latent_thoughts}
