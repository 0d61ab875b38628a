"""The settings of `ponder`: names, types, ranges and defaults, which depend on the method.

Which method has which of them, with which default, is among its facts (:mod:`megatron_ext.ponder.config`).
K is `num_latent_thoughts`, J `num_jacobi_iterations`.
"""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from megatron_ext.ponder.config import Method, Mixture, Penalty, Residual
from pipeline.config.section import (
    BelowOne,
    Count,
    CountOrZero,
    Fraction,
    NonNegative,
    Pair,
    Passes,
    PassesFrom,
    PassRange,
    Positive,
    Section,
    Switch,
)


def _by_method(name: str, usual: Any) -> Callable[[dict[str, Any]], Any]:
    """Return a default factory: the method's own default of a setting, or the usual one."""
    return lambda given: given["method"].facts.defaults.get(name, usual)


def _default_sweeps(given: dict[str, Any]) -> int:
    return 2 if given["method"].has_sweeps and given["num_latent_thoughts"] > 0 else 0


class PonderSection(Section):
    """The pondering method and how it halts."""

    method: Method
    num_latent_thoughts: Passes = Field(
        default_factory=_by_method("num_latent_thoughts", 3),
        description="K, extra steps per token: thoughts, pause tokens, iterations; default: 3, for vanilla 0",
    )
    num_jacobi_iterations: Passes = Field(
        default_factory=_default_sweeps,
        description="J, refinement sweeps, in evaluation always, in training unless one of the next two is "
        "given; default: 2, without latent thoughts 0",
    )
    random_jacobi_iterations: PassRange | None = Field(
        None, description="in training draw J uniformly from this inclusive range"
    )
    jacobi_schedule: Annotated[tuple[PassesFrom, ...], Field(min_length=1)] | None = Field(
        None, description="in training, pairs [iteration, J]: J from this iteration on"
    )
    scale_embeds: Switch = Field(
        default_factory=_by_method("scale_embeds", True),
        description="multiply embeddings by sqrt(2.5 H), with mixtures and pause tokens by sqrt(H); default: "
        "true, for vanilla false",
    )
    mixture: Mixture = Field(
        default_factory=_by_method("mixture", Mixture.HIDDEN),
        description="what a step feeds back: its hidden state, or the mean embedding of the tokens it "
        "predicts, all (softmax) or the most likely (top_k); default: softmax for ponderlm and adaponderlm, "
        "else hidden",
    )
    mixture_top_k: Count = Field(100, description="embeddings in a mixture of kind top_k")
    softmax_temperature: Positive = Field(1.0, description="divides the logits of mixtures, nothing else")
    residual: Residual = Field(
        Residual.ACCUMULATE, description="a mixture is added to the running input, or to the embedding"
    )
    multiply_embedding: Switch = Field(False, description="start from K times the embedding")
    pause_token_id: CountOrZero | None = Field(
        None, description="embedding row of pause tokens; default: one is reserved behind the vocabulary"
    )
    pruning_threshold: BelowOne = Field(
        1e-4,
        description="tau: a step with less tail mass (ponderlm3) or a lower gate (adaponderlm) is skipped",
    )
    penalty: Penalty = Field(
        default_factory=_by_method("penalty", Penalty.EXPECTED_STEPS),
        description="what is penalised; default: expected_steps, for adaponderlm always bottom_k",
    )
    penalty_weight: NonNegative = Field(
        default_factory=_by_method("penalty_weight", 0.3),
        description="lambda at the end of the ramp; default: 0.3, for adaponderlm 0.1",
    )
    penalty_ramp: Pair = Field(
        (0, 0),
        description="ponderlm3: lambda rises linearly from 0 between these two iterations; adaponderlm: from "
        "the first on lambda holds in full, and the fraction rises linearly from 0 until the second",
    )
    bottom_k_fraction: Fraction = Field(
        default_factory=_by_method("bottom_k_fraction", 0.25),
        description="share of steps that a bottom_k penalty pushes down; default: 0.25, for adaponderlm 0.1",
    )
    freeze_backbone_tokens: CountOrZero = Field(
        0, description="train the router or the gates alone until so many tokens are consumed"
    )
