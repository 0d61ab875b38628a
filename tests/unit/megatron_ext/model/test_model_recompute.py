"""Activation recompute changes no gradient: leaves between passes give that of one graph over all passes."""

from typing import Any

import pytest
import torch

from megatron_ext.model.config import Architecture
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Mixture, Residual
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from megatron_ext.ponder.passes import draw_jacobi_iterations
from tests.support.ponder_models import (
    AUTHORS,
    RECOMPUTE,
    batch_of,
    each_method,
    each_model,
    gradients_of,
    halting_tokens,
    random_tokens,
    tiny_model,
)

BATCH = batch_of(
    torch.cat([random_tokens(1, 9), halting_tokens()]),
    torch.tensor([[0] * 4 + [1] * 5, [0] * 7 + [PADDING_DOCUMENT] * 2]),
)
SEED, STEPS = 4, (0, 1)


def assert_same_gradients(groups: ParallelGroups, method: Method, *arguments: Any, **settings: Any) -> None:
    """Compare each kind with one graph, in several steps that differ in their numbers of sweeps."""
    plain = tiny_model(groups, method, *arguments, **settings)
    recomputing = {
        kind: tiny_model(groups, method, *arguments, **settings, **own) for kind, own in RECOMPUTE.items()
    }
    for step in STEPS:
        sweeps = draw_jacobi_iterations(SEED, step, 0, 3)
        wanted = gradients_of(plain, BATCH, num_jacobi_iterations=sweeps)
        for kind, model in recomputing.items():
            found = gradients_of(model, BATCH, num_jacobi_iterations=sweeps)
            assert found.keys() == wanted.keys()
            for name, gradient in wanted.items():
                difference = (found[name] - gradient).abs().max()
                assert difference <= 1e-12 * gradient.abs().max(), f"{kind}, {sweeps} sweeps, {name}"


def test_the_numbers_of_sweeps_differ() -> None:
    assert len({draw_jacobi_iterations(SEED, step, 0, 3) for step in STEPS}) > 1


@each_model
def test_recompute_gives_the_gradients_of_one_graph(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    assert_same_gradients(groups, method, architecture)


@pytest.mark.parametrize(
    ("method", "ponder"),
    [
        (Method.PONDERLM2, {"mixture": Mixture.TOP_K}),
        (Method.PONDERLM3, {"mixture": Mixture.SOFTMAX}),
        (Method.PONDERLM3, AUTHORS),
        (Method.ADAPONDERLM, {"mixture": Mixture.HIDDEN}),
        (Method.PONDERLM, {"mixture": Mixture.TOP_K}),
        (Method.PONDERLM, {"residual": Residual.FROM_EMBEDDING}),
    ],
)
def test_recompute_is_right_in_every_variant(
    groups: ParallelGroups, method: Method, ponder: dict[str, Any]
) -> None:
    assert_same_gradients(groups, method, num_latent_thoughts=3, ponder={"mixture_top_k": 7, **ponder})


def test_recompute_is_right_with_tied_embeddings(groups: ParallelGroups) -> None:
    assert_same_gradients(groups, Method.ADAPONDERLM, tie_embeddings=True)


@each_method
@pytest.mark.parametrize("kind", RECOMPUTE)
def test_what_is_recomputed_runs_twice(groups: ParallelGroups, method: Method, kind: str) -> None:
    model = tiny_model(groups, method, **RECOMPUTE[kind])
    calls = {"layers": 0, "attention": 0}
    for layer in model.decoder.layers:
        for name, module in (("layers", layer), ("attention", layer.self_attention.core_attention)):
            module.register_forward_pre_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))

    gradients_of(model, BATCH)

    forward = 2 * model.ponder.plan(2).num_passes
    assert calls == {"layers": 2 * forward, "attention": 2 * forward}
