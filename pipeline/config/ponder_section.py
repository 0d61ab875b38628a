"""The settings of `ponder`: names, types, ranges and defaults, which depend on the method.

Which methods have which setting stands in `pipeline.config.rules_ponder`; the methods themselves are those of
the definitions. K is `num_latent_thoughts`, J `num_jacobi_iterations`.
"""

from collections.abc import Callable, Mapping
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
    Positive,
    Section,
    Switch,
)


def _by_method(usual: Any, *, but: Mapping[Method, Any]) -> Callable[[dict[str, Any]], Any]:
    """Make a default that some methods have otherwise."""
    return lambda given: but.get(given["method"], usual)


def _default_sweeps(given: dict[str, Any]) -> int:
    return 2 if given["method"].has_sweeps and given["num_latent_thoughts"] > 0 else 0


class PonderSection(Section):
    """The pondering method and how it halts."""

    method: Method
    num_latent_thoughts: CountOrZero = Field(
        default_factory=_by_method(3, but={Method.VANILLA: 0}),
        description="K, extra steps per token: thoughts, pause tokens, iterations; default: 3, for vanilla 0",
    )
    num_jacobi_iterations: CountOrZero = Field(
        default_factory=_default_sweeps,
        description="J, refinement sweeps, in evaluation always, in training unless one of the next two is "
        "given; default: 2, without latent thoughts 0",
    )
    random_jacobi_iterations: Pair | None = Field(
        None, description="in training draw J uniformly from this inclusive range"
    )
    jacobi_schedule: Annotated[tuple[Pair, ...], Field(min_length=1)] | None = Field(
        None, description="in training, pairs [iteration, J]: from this iteration on make so many sweeps"
    )
    scale_embeds: Switch = Field(
        default_factory=_by_method(True, but={Method.VANILLA: False}),
        description="multiply embeddings by sqrt(2.5 H), with mixtures and pause tokens by sqrt(H); default: "
        "true, for vanilla false",
    )
    mixture: Mixture = Field(
        default_factory=_by_method(
            Mixture.HIDDEN, but=dict.fromkeys((Method.PONDERLM, Method.ADAPONDERLM), Mixture.SOFTMAX)
        ),
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
        1e-4, description="tau: a step is not taken with less tail mass (ponderlm3) or gate (adaponderlm)"
    )
    penalty: Penalty = Field(
        default_factory=_by_method(Penalty.EXPECTED_STEPS, but={Method.ADAPONDERLM: Penalty.BOTTOM_K}),
        description="what is penalised; default: expected_steps, for adaponderlm always bottom_k",
    )
    penalty_weight: NonNegative = Field(
        default_factory=_by_method(0.3, but={Method.ADAPONDERLM: 0.1}),
        description="lambda, once the ramp is over; default: 0.3, for adaponderlm 0.1",
    )
    penalty_ramp: Pair = Field(
        (0, 0),
        description="ponderlm3: lambda rises linearly from 0 between these two iterations; adaponderlm: from "
        "the first on lambda holds in full, and the fraction rises linearly from 0 until the second",
    )
    bottom_k_fraction: Fraction = Field(
        default_factory=_by_method(0.25, but={Method.ADAPONDERLM: 0.1}),
        description="share of steps that a bottom_k penalty pushes down; default: 0.25, for adaponderlm 0.1",
    )
    freeze_backbone_tokens: CountOrZero = Field(
        0, description="train the router or the gates alone until so many tokens are consumed"
    )
