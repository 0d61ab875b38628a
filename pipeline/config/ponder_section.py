"""The settings of `ponder`: names, types, ranges and defaults, which depend on the method.

Which method has which of them, with which default, is among its facts (:mod:`megatron_ext.ponder.config`).
K is `num_latent_thoughts`, J `num_jacobi_iterations`.
"""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from megatron_ext.ponder.config import (
    Form,
    Method,
    Mixture,
    Penalty,
    Reading,
    ReadoutFrom,
    Residual,
    RouterForm,
    RouterKind,
    RouterStart,
    TrainingMask,
)
from pipeline.config.section import (
    AllOrCount,
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
    Share,
    Switch,
)


def _by_method(name: str, usual: Any) -> Callable[[dict[str, Any]], Any]:
    """Return a default factory: the default of a setting in the form, or in the method, or the usual one."""
    return lambda given: _default(given, name, usual)


def _default(given: dict[str, Any], name: str, usual: Any) -> Any:
    facts = given["method"].facts
    of_form = facts.forms.get(given.get("form"), {})
    return of_form.get(name, facts.defaults.get(name, usual))


def _default_sweeps(given: dict[str, Any]) -> int:
    if not given["method"].has_sweeps or given["num_latent_thoughts"] == 0:
        return 0
    return int(_default(given, "num_jacobi_iterations", 2))


def _default_random_sweeps(given: dict[str, Any]) -> tuple[int, int] | None:
    """K + 1 to K + 3 in the authors' form, unless J follows a schedule."""
    if given.get("form") != Form.AUTHORS or not given["method"].has_sweeps:
        return None
    num_thoughts = given["num_latent_thoughts"]
    if num_thoughts == 0 or given["jacobi_schedule"] is not None:
        return None
    return num_thoughts + 1, num_thoughts + 3


class PonderSection(Section):
    """The pondering method and how it halts."""

    method: Method = Field(description="the pondering method (docs/methods.md)")
    form: Form = Field(
        Form.MEGAPONDER,
        description="defaults of the settings below: this project's, or those of the research code of "
        "PonderLM-3's authors (docs/methods.md); a setting that is given counts",
    )
    num_latent_thoughts: Passes = Field(
        default_factory=_by_method("num_latent_thoughts", 3),
        description="K, extra steps per token: thoughts, pause tokens, iterations; default: 3, for vanilla 0",
    )
    random_latent_thoughts: PassRange | None = Field(
        None,
        description="in training draw K uniformly from this inclusive range, at most num_latent_thoughts",
    )
    thoughts_schedule: Annotated[tuple[PassesFrom, ...], Field(min_length=1)] | None = Field(
        None,
        description="in training, pairs [iteration, K]: K from this iteration on, at most the model's",
    )
    num_jacobi_iterations: Passes = Field(
        default_factory=_default_sweeps,
        description="J, refinement sweeps, in evaluation always, in training unless one of the next two is "
        "given; default: 2, in the authors' form 10, without latent thoughts 0",
    )
    jacobi_schedule: Annotated[tuple[PassesFrom, ...], Field(min_length=1)] | None = Field(
        None, description="in training, pairs [iteration, J]: J from this iteration on"
    )
    random_jacobi_iterations: PassRange | None = Field(
        default_factory=_default_random_sweeps,
        description="in training draw J uniformly from this inclusive range; default: no draw, in the "
        "authors' form [K + 1, K + 3] unless jacobi_schedule is given",
    )
    gradient_passes: AllOrCount = Field(
        "all",
        description="in training so many last passes have gradients, from 1, the final pass alone; all "
        "earlier ones run forward only, and their thoughts are constants",
    )
    sweep_tolerance: Positive | None = Field(
        None,
        description="in training the sweeps of a micro-batch end where one moves its thoughts by at most "
        "this, relative to their size; those that gradient_passes asks for run in any case; not with "
        "pipeline stages",
    )
    skip_pruned_rows: Switch = Field(
        False,
        description="in training the passes leave out the rows of slots below tau, as decoding does; not "
        "with pipeline stages or sequence parallelism",
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
    step_input_scale: Positive = Field(
        1.0, description="factor on the hidden state that is the input of the next step"
    )
    pruning_threshold: BelowOne = Field(
        default_factory=_by_method("pruning_threshold", 1e-4),
        description="tau: a step with less tail mass (ponderlm3), a lower gate (adaponderlm) or less reach "
        "(adaptive_latent_cot) is skipped; default: 1e-4, for adaptive_latent_cot 0.05",
    )
    router: RouterKind = Field(
        default_factory=_by_method("router", RouterKind.MLP),
        description="the network that decides about steps: with a hidden layer of H / 4, or one linear map",
    )
    router_start: RouterStart = Field(
        default_factory=_by_method("router_start", RouterStart.LAST_STEP),
        description="initial router: 0.9 on step K for every token, or about equal shares by a random last "
        "layer",
    )
    mask_in_training: TrainingMask = Field(
        default_factory=_by_method("mask_in_training", TrainingMask.SOFT),
        description="keys of slots below tau in training: weighted by their tail mass like all (soft), or "
        "hidden (hard)",
    )
    attention_scale_extra: CountOrZero = Field(
        default_factory=_by_method("attention_scale_extra", 0),
        description="attention logits are divided by sqrt(head size + this), in all passes and in decoding",
    )
    pre_pass: Switch = Field(
        default_factory=_by_method("pre_pass", False),
        description="the first pass, over slot 0 alone, gives the weights of all build-up passes and of the "
        "first sweep",
    )
    router_damping: Share = Field(
        default_factory=_by_method("router_damping", 1.0),
        description="share of the newest distribution over steps in the one after a sweep; 1: not damped",
    )
    undamped_sweeps: CountOrZero = Field(
        1, description="so many last sweeps are not damped; needs router_damping below 1"
    )
    readout_from: ReadoutFrom = Field(
        default_factory=_by_method("readout_from", ReadoutFrom.FINAL),
        description="the distribution that reads the final pass: its own, or that of the last sweep, which "
        "weighs its keys",
    )
    penalty: Penalty = Field(
        default_factory=_by_method("penalty", Penalty.EXPECTED_STEPS),
        description="what is penalised; default: expected_steps, for adaponderlm always bottom_k",
    )
    penalty_weight: NonNegative = Field(
        default_factory=_by_method("penalty_weight", 0.3),
        description="lambda at the end of the ramp; default: 0.3, for adaponderlm and adaptive_latent_cot "
        "0.1",
    )
    penalty_start_weight: NonNegative = Field(
        0.0, description="lambda before the ramp, from which it changes linearly to penalty_weight"
    )
    penalty_ramp: Pair = Field(
        default_factory=_by_method("penalty_ramp", (0, 0)),
        description="lambda goes linearly from penalty_start_weight (ponderlm3), else from 0, to "
        "penalty_weight between these two iterations; adaponderlm: from the first on lambda holds in full, "
        "and the fraction rises linearly from 0 until the second; default: [0, 0], in the authors' form "
        "[1000, 4000]",
    )
    bottom_k_fraction: Fraction = Field(
        default_factory=_by_method("bottom_k_fraction", 0.25),
        description="share of steps that a bottom_k penalty pushes down; default: 0.25, for adaponderlm 0.1",
    )
    bottom_k_floor: bool = Field(
        True,
        description="gates below pruning_threshold count as if they were at it, so that the bottom_k penalty "
        "pushes them no further; false: it has no lower bound, as in the paper",
    )
    penalty_exponent: NonNegative = Field(
        1.0,
        description="beta: continuing is penalised in proportion to this power of the probability that a "
        "step gives to the label",
    )
    reading: Reading = Field(
        Reading.MIXTURE,
        description="what is read of a token's steps: their mixture, the same without gradient to the "
        "router, or the last step",
    )
    step_loss_weight: NonNegative = Field(
        0.0, description="weight of the mean loss of reading each step alone, added in training"
    )
    entropy_floor: NonNegative = Field(
        0.0, description="nats; tokens whose steps have less entropy are penalised in training"
    )
    entropy_floor_weight: Positive = Field(1.0, description="weight of that penalty")
    freeze_backbone_tokens: CountOrZero = Field(
        0, description="train the router or the gates alone until so many tokens are consumed"
    )
    blended_start_iterations: CountOrZero = Field(
        0,
        description="for a model that was trained without extra steps, in another run or in this one before "
        "thoughts_schedule begins with them: over so many iterations the share of the thoughts in what is "
        "read rises from 0 to 1, and their keys come to full weight",
    )
    held_decisions_iterations: CountOrZero = Field(
        0,
        description="for so many iterations with extra steps the router or the gates learn nothing, and the "
        "penalty is not applied",
    )

    @property
    def router_form(self) -> RouterForm:
        """The form of the router."""
        return RouterForm(
            router=self.router,
            router_start=self.router_start,
            mask_in_training=self.mask_in_training,
            attention_scale_extra=self.attention_scale_extra,
            pre_pass=self.pre_pass,
            router_damping=self.router_damping,
            undamped_sweeps=self.undamped_sweeps,
            readout_from=self.readout_from,
        )
