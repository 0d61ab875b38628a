"""The passes of the model against the left-to-right computation that they equal or approximate."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Mixture, Residual
from megatron_ext.ponder.reference.method import TokenResult
from megatron_ext.ponder.residual import residual
from tests.support.ponder_models import (
    VOCAB_SIZE,
    batch_of,
    each_backbone,
    halting_tokens,
    observed,
    oracle_results,
    random_tokens,
    tiny_model,
)

LENGTH = 7
EXACT = 1e-9
each_mixture = pytest.mark.parametrize("mixture", Mixture)
each_sweeping_method = pytest.mark.parametrize("method", [Method.PONDERLM2, Method.PONDERLM3])


def parallel_logits(model: PonderModel, tokens: Tensor, sweeps: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits [S, V] of one sequence, and what was observed. PonderLM-3 prunes, as the oracle does."""
    with torch.no_grad():
        _, seen = observed(model, batch_of(tokens), num_jacobi_iterations=sweeps, prune=True)
    return seen["logits"][:, 0, :VOCAB_SIZE], seen


def sequential(model: PonderModel, tokens: Tensor) -> tuple[Tensor, list[TokenResult]]:
    """Return logits [S, V] of one sequence, and the whole result of the oracle."""
    with torch.no_grad():
        results = oracle_results(model, tokens[0].tolist())
    return torch.stack([result.logits for result in results]), results


def errors(found: Tensor, expected: Tensor) -> list[float]:
    """Return the largest error of each token."""
    return (found - expected).abs().amax(dim=-1).tolist()


# Methods without sweeps compute the solution itself. Every setting that changes what is computed stands here.
EXACT_VARIANTS: list[tuple[Method, dict[str, Any]]] = [
    (Method.VANILLA, {}),
    (Method.LOOP, {}),
    (Method.LOOP, {"scale_embeds": False}),
    (Method.PAUSE, {}),
    (Method.PAUSE, {"scale_embeds": False, "pause_token_id": 5}),
    *((Method.PONDERLM, {"mixture": mixture, "residual": rule}) for mixture in Mixture for rule in Residual),
    (Method.PONDERLM, {"multiply_embedding": True, "scale_embeds": False}),
    (Method.PONDERLM, {"multiply_embedding": True, "residual": Residual.FROM_EMBEDDING}),
    (Method.PONDERLM, {"softmax_temperature": 0.3}),
    (Method.PONDERLM, {"softmax_temperature": 2.0, "mixture": Mixture.TOP_K}),
    *((Method.ADAPONDERLM, {"mixture": mixture}) for mixture in Mixture),
    (Method.ADAPONDERLM, {"scale_embeds": False, "softmax_temperature": 0.5}),
    (Method.ADAPTIVE_LATENT_COT, {}),
    (Method.ADAPTIVE_LATENT_COT, {"scale_embeds": False, "step_input_scale": 0.5, "pruning_threshold": 0.2}),
]


@each_backbone
@pytest.mark.parametrize(("method", "ponder"), EXACT_VARIANTS)
def test_a_forward_without_sweeps_is_the_oracle(
    groups: ParallelGroups, method: Method, ponder: dict[str, Any], architecture: Architecture
) -> None:
    model = tiny_model(
        groups, method, architecture, num_latent_thoughts=3, ponder={"mixture_top_k": 7, **ponder}
    )
    tokens = halting_tokens(LENGTH)
    expected, results = sequential(model, tokens)

    found, seen = parallel_logits(model, tokens)

    assert max(errors(found, expected)) < EXACT
    logits = seen.get("gate_logits", seen.get("continue_logits"))
    assert (logits is not None) == method.halts
    if logits is not None:
        for token, result in enumerate(results):
            asked = logits[token, 0, : len(result.gate_logits)]
            torch.testing.assert_close(asked, result.gate_logits, rtol=0, atol=EXACT)


@each_backbone
@each_sweeping_method
@each_mixture
def test_enough_sweeps_reach_the_sequential_solution(
    groups: ParallelGroups, method: Method, architecture: Architecture, mixture: Mixture
) -> None:
    model = tiny_model(
        groups,
        method,
        architecture,
        ponder={"mixture": mixture, "mixture_top_k": 7},
    )
    tokens = halting_tokens(LENGTH)
    expected, results = sequential(model, tokens)

    sweeps = 2 * (LENGTH - 1)
    found, seen = parallel_logits(model, tokens, sweeps)

    assert max(errors(found, expected)) < EXACT
    # [S, K, B, H] -> [S, K, H]; pruned thoughts are computed in the sweeps but not used.
    thoughts = seen[f"thoughts/after_pass_{2 + sweeps - 1:02d}"][:, :, 0]
    for token, result in enumerate(results):
        kept = thoughts[token, : len(result.thoughts)]
        torch.testing.assert_close(kept, result.thoughts, rtol=0, atol=EXACT)


@each_backbone
@pytest.mark.parametrize("method", [method for method in Method if method.halts])
def test_tokens_halt_where_the_oracle_lets_them(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model, tokens = tiny_model(groups, method, architecture), halting_tokens(LENGTH)
    _, results = sequential(model, tokens)

    output, _ = observed(model, batch_of(tokens), num_jacobi_iterations=2 * (LENGTH - 1), prune=True)

    assert output.steps is not None
    assert output.steps[:, 0].tolist() == [result.steps for result in results]
    assert len({result.steps for result in results}) > 1, "tokens must differ in their steps"


@each_backbone
def test_the_soft_mask_keeps_what_the_hard_one_drops(
    groups: ParallelGroups, architecture: Architecture
) -> None:
    model, tokens = tiny_model(groups, "ponderlm3", architecture), halting_tokens(LENGTH)

    _, soft = observed(model, batch_of(tokens), num_jacobi_iterations=2 * (LENGTH - 1))

    distances = errors(soft["logits"][:, 0, :VOCAB_SIZE], sequential(model, tokens)[0])
    assert 100 * EXACT < max(distances) < 100 * model.config.ponder.pruning_threshold


@each_sweeping_method
@each_mixture
@pytest.mark.parametrize(("num_thoughts", "sweeps"), [(1, 1), (2, 0), (2, 4), (3, 4)])
def test_each_sweep_makes_further_tokens_exact(
    groups: ParallelGroups, method: Method, mixture: Mixture, num_thoughts: int, sweeps: int
) -> None:
    model = tiny_model(
        groups, method, num_latent_thoughts=num_thoughts, ponder={"mixture": mixture, "mixture_top_k": 7}
    )
    tokens = halting_tokens(LENGTH)

    by_token = errors(parallel_logits(model, tokens, sweeps)[0], sequential(model, tokens)[0])

    num_exact = 1 + sweeps // num_thoughts
    assert max(by_token[:num_exact]) < EXACT
    # Halting stops an error where a token runs no thoughts, so only the rest as a whole is sure to have one.
    inexact = by_token[num_exact:] if method is Method.PONDERLM3 else by_token[num_exact : num_exact + 1]
    assert max(inexact) > 1e-8


@each_backbone
@each_sweeping_method
@each_mixture
def test_residuals_fall_to_zero(
    groups: ParallelGroups, method: Method, architecture: Architecture, mixture: Mixture
) -> None:
    model = tiny_model(groups, method, architecture, ponder={"mixture": mixture, "mixture_top_k": 7})
    sweeps = 2 * (LENGTH - 1) + 1

    with torch.no_grad():
        batch = batch_of(random_tokens(2, LENGTH))
        statistics = model(batch, num_jacobi_iterations=sweeps).statistics

    values = residual(statistics["residual_change"], statistics["residual_norm"])[:sweeps].tolist()
    assert values[0] > 1e-4
    if mixture is not Mixture.TOP_K:
        # The residual jumps in a sweep that changes which tokens are the most likely.
        assert all(later < 0.9 * earlier for earlier, later in pairwise(values[:6]))
    assert values[-1] < 1e-14, "the last sweep starts at the fixed point"
