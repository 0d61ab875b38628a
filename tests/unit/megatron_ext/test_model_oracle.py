"""The passes of the model against the left-to-right computation that they approximate."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from megatron_ext.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.oracle import TokenResult
from megatron_ext.ponder.residual import residual
from tests.support.ponder_models import (
    VOCAB_SIZE,
    batch_of,
    observed,
    oracle_results,
    random_tokens,
    tiny_model,
)

LENGTH = 7
BACKBONES = ["llama", "gpt_neox"]
EXACT = 1e-9
# Tokens that halt at different steps in every model below.
HALTING_TOKENS = random_tokens(2, 9, seed=5)[1:, :LENGTH]


def parallel_logits(
    model: PonderModel, tokens: Tensor, sweeps: int, *, prune: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """[S, V] of one sequence, and what was observed."""
    with torch.no_grad():
        _, seen = observed(model, batch_of(tokens), num_jacobi_iterations=sweeps, prune=prune)
    return seen["logits"][:, 0, :VOCAB_SIZE], seen


def sequential(model: PonderModel, tokens: Tensor) -> tuple[Tensor, list[TokenResult]]:
    """[S, V] of one sequence, and all that the oracle gave."""
    with torch.no_grad():
        results = oracle_results(model, tokens[0].tolist())
    return torch.stack([result.logits for result in results]), results


def errors(found: Tensor, expected: Tensor) -> list[float]:
    """Largest error of each token."""
    return (found - expected).abs().amax(dim=-1).tolist()


@pytest.mark.parametrize("architecture", BACKBONES)
def test_vanilla_equals_the_oracle(groups: ParallelGroups, architecture: str) -> None:
    model, tokens = tiny_model(groups, "vanilla", architecture), random_tokens(1, LENGTH)

    found, _ = parallel_logits(model, tokens, 0)

    assert max(errors(found, sequential(model, tokens)[0])) < EXACT


@pytest.mark.parametrize("num_thoughts", [1, 3])
@pytest.mark.parametrize("architecture", BACKBONES)
def test_enough_sweeps_reach_the_sequential_solution(
    groups: ParallelGroups, architecture: str, num_thoughts: int
) -> None:
    model = tiny_model(groups, "ponderlm2", architecture, num_latent_thoughts=num_thoughts)
    tokens = random_tokens(1, LENGTH)
    expected, results = sequential(model, tokens)

    sweeps = num_thoughts * (LENGTH - 1)
    found, seen = parallel_logits(model, tokens, sweeps)

    assert max(errors(found, expected)) < EXACT
    # [S, K, B, H] -> [S, K, H]
    thoughts = seen[f"thoughts/after_pass_{num_thoughts + sweeps - 1:02d}"][:, :, 0]
    torch.testing.assert_close(thoughts, torch.stack([r.thoughts for r in results]), rtol=0, atol=EXACT)


@pytest.mark.parametrize("num_thoughts", [1, 2, 3])
@pytest.mark.parametrize("sweeps", [0, 1, 4])
def test_each_sweep_makes_further_tokens_exact(
    groups: ParallelGroups, num_thoughts: int, sweeps: int
) -> None:
    model = tiny_model(groups, "ponderlm2", num_latent_thoughts=num_thoughts)
    tokens = random_tokens(1, LENGTH)

    by_token = errors(parallel_logits(model, tokens, sweeps)[0], sequential(model, tokens)[0])

    num_exact = 1 + sweeps // num_thoughts
    assert max(by_token[:num_exact]) < EXACT
    assert by_token[num_exact] > 1e-7


@pytest.mark.parametrize("num_thoughts", [1, 3])
@pytest.mark.parametrize("architecture", BACKBONES)
def test_hard_pruning_in_parallel_equals_skipping_in_sequence(
    groups: ParallelGroups, architecture: str, num_thoughts: int
) -> None:
    model = tiny_model(groups, "ponderlm3", architecture, num_latent_thoughts=num_thoughts)
    tokens = HALTING_TOKENS
    expected, results = sequential(model, tokens)
    sweeps = num_thoughts * (LENGTH - 1)

    found, _ = parallel_logits(model, tokens, sweeps, prune=True)

    assert len({result.steps for result in results}) > 1, "tokens must differ in their steps"
    assert max(errors(found, expected)) < EXACT
    output, _ = observed(model, batch_of(tokens), num_jacobi_iterations=sweeps, prune=True)
    assert output.steps is not None
    assert output.steps[:, 0].tolist() == [result.steps for result in results]
    soft, _ = parallel_logits(model, tokens, sweeps)
    assert max(errors(soft, expected)) > 100 * EXACT


@pytest.mark.parametrize("sweeps", [0, 2, 3])
def test_hard_pruning_makes_the_same_tokens_exact(groups: ParallelGroups, sweeps: int) -> None:
    model, tokens = tiny_model(groups, "ponderlm3"), HALTING_TOKENS

    by_token = errors(parallel_logits(model, tokens, sweeps, prune=True)[0], sequential(model, tokens)[0])

    assert max(by_token[: 1 + sweeps // 2]) < EXACT
    assert max(by_token) > 1e-6


@pytest.mark.parametrize("method", ["ponderlm2", "ponderlm3"])
def test_residuals_fall_to_zero(groups: ParallelGroups, method: str) -> None:
    model, batch = tiny_model(groups, method), batch_of(random_tokens(2, LENGTH))
    sweeps = 2 * (LENGTH - 1) + 1

    with torch.no_grad():
        statistics = model(batch, num_jacobi_iterations=sweeps).statistics

    values = residual(statistics["residual_change"], statistics["residual_norm"])[:sweeps].tolist()
    assert values[0] > 1e-3
    assert all(later < 0.9 * earlier for earlier, later in pairwise(values[:6]))
    assert values[-1] < 1e-14, "the last sweep starts at the fixed point"
