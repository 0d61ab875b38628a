"""Rules on the settings of the pondering method."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from megatron_ext.ponder.config import Method, Mixture, RouterKind
from pipeline.config.errors import ConfigProblem, as_written
from pipeline.config.ponder_section import PonderSection

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


def _settings_of_other_methods(config: RunConfig) -> Iterator[ConfigProblem]:
    method = config.ponder.method
    for name in PonderSection.model_fields:
        if name == "method" or name in method.facts.settings:
            continue
        default = default_of(name, method)
        value = getattr(config.ponder, name, default)
        if value != default:
            yield ConfigProblem(
                path=f"ponder.{name}",
                rule=f"must be left out for ponder.method {method}, which does not use it",
                value=as_written(value),
                cure=f"leave it out, or set it to null; it belongs to {', '.join(methods_with(name))}",
            )


def methods_with(name: str) -> tuple[Method, ...]:
    """Return the methods that use a setting of `ponder`; for all others it must stay at its default."""
    return tuple(method for method in Method if name in method.facts.settings)


def default_of(name: str, method: Method) -> Any:
    """Return the default of a setting that `method` does not use; it depends on nothing else."""
    field = PonderSection.model_fields[name]
    return field.get_default(call_default_factory=True, validated_data={"method": method})


def _has(config: RunConfig, name: str) -> bool:
    """Whether the method uses a setting; one that it does not use is reported as such and not checked."""
    return name in config.ponder.method.facts.settings


def _random_jacobi(config: RunConfig) -> Iterator[ConfigProblem]:
    bounds = config.ponder.random_jacobi_iterations
    if bounds is not None and bounds[0] > bounds[1] and _has(config, "random_jacobi_iterations"):
        yield ConfigProblem(
            path="ponder.random_jacobi_iterations",
            rule="must be [lowest, highest]",
            value=as_written(bounds),
            cure=f"write [{bounds[1]}, {bounds[0]}]",
        )


def _jacobi_schedule(config: RunConfig) -> Iterator[ConfigProblem]:
    schedule = config.ponder.jacobi_schedule
    if schedule is None or not _has(config, "jacobi_schedule"):
        return
    starts = [start for start, _ in schedule]
    if any(later <= earlier for earlier, later in pairwise(starts)):
        yield ConfigProblem(
            path="ponder.jacobi_schedule",
            rule="must list every iteration once, in rising order",
            value=as_written(schedule),
            cure=f"try {as_written(sorted(dict(schedule).items()))}",
        )
    elif starts[0] != 0:
        yield ConfigProblem(
            path="ponder.jacobi_schedule",
            rule="must start at iteration 0",
            value=as_written(schedule),
            cure=f"begin it with [0, {schedule[0][1]}]",
        )
    if config.ponder.random_jacobi_iterations is not None:
        yield ConfigProblem(
            path="ponder.jacobi_schedule",
            rule="must not be combined with ponder.random_jacobi_iterations: both set J in training",
            value="both are given",
            cure="leave one of them out",
        )


def _sweeps_need_thoughts(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder = config.ponder
    if ponder.num_latent_thoughts > 0 or not _has(config, "jacobi_schedule"):
        return
    for name in ("random_jacobi_iterations", "jacobi_schedule"):
        value = getattr(ponder, name)
        if value is not None:
            yield ConfigProblem(
                path=f"ponder.{name}",
                rule="needs latent thoughts to refine (ponder.num_latent_thoughts above 0)",
                value=f"{as_written(value)} with 0 thoughts",
                cure="leave it out",
            )


def _mixture(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder, vocab_size = config.ponder, config.model.vocab_size
    is_top_k = ponder.mixture == Mixture.TOP_K and _has(config, "mixture")
    if is_top_k and vocab_size is not None and ponder.mixture_top_k > vocab_size:
        yield ConfigProblem(
            path="ponder.mixture_top_k",
            rule=f"must be at most model.vocab_size ({vocab_size})",
            value=str(ponder.mixture_top_k),
            cure=f"try {min(100, vocab_size)}",
        )
    is_divided = ponder.softmax_temperature != 1 and _has(config, "softmax_temperature")
    if is_divided and ponder.mixture == Mixture.HIDDEN:
        yield ConfigProblem(
            path="ponder.softmax_temperature",
            rule="needs a mixture, whose logits it divides",
            value=f"{ponder.softmax_temperature} with ponder.mixture hidden",
            cure="leave it out, or set ponder.mixture to softmax or top_k",
        )


def _multiplied_embedding(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder = config.ponder
    is_multiplied = ponder.multiply_embedding and _has(config, "multiply_embedding")
    if is_multiplied and ponder.num_latent_thoughts == 0:
        yield ConfigProblem(
            path="ponder.multiply_embedding",
            rule="needs ponder.num_latent_thoughts of at least 1, by which it multiplies",
            value="true with 0",
            cure="leave it out",
        )


def _pause_token(config: RunConfig) -> Iterator[ConfigProblem]:
    token, vocab_size = config.ponder.pause_token_id, config.model.vocab_size
    if token is None or vocab_size is None or not _has(config, "pause_token_id"):
        return
    if token >= vocab_size:
        yield ConfigProblem(
            path="ponder.pause_token_id",
            rule=f"must be a token of the vocabulary, below model.vocab_size ({vocab_size})",
            value=str(token),
            cure="leave it out to reserve a row behind the vocabulary",
        )


def _penalty_ramp(config: RunConfig) -> Iterator[ConfigProblem]:
    start, end = config.ponder.penalty_ramp
    if start > end and _has(config, "penalty_ramp"):
        yield ConfigProblem(
            path="ponder.penalty_ramp",
            rule="must be [first iteration, last iteration]",
            value=as_written(config.ponder.penalty_ramp),
            cure=f"write [{end}, {start}]",
        )


def _decider_size(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder = config.ponder
    decider = ponder.method.facts.decider
    if (
        decider is None
        or decider.inner is None
        or (_has(config, "router") and ponder.router == RouterKind.LINEAR)
    ):
        return
    if decider.inner(config.model.hidden_size) == 0:
        yield ConfigProblem(
            path="model.hidden_size",
            rule=f"must be larger for {config.ponder.method}: its {decider.name} would have no hidden units",
            value=str(config.model.hidden_size),
            cure="try 64",
        )


def _undamped_sweeps(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder = config.ponder
    is_given = ponder.undamped_sweeps != default_of("undamped_sweeps", ponder.method)
    if is_given and ponder.router_damping == 1 and _has(config, "undamped_sweeps"):
        yield ConfigProblem(
            path="ponder.undamped_sweeps",
            rule="needs sweeps that are damped (ponder.router_damping below 1)",
            value=f"{ponder.undamped_sweeps} with ponder.router_damping {ponder.router_damping:g}",
            cure="leave it out, or set ponder.router_damping to 0.1",
        )


def _bottom_k_fraction(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder = config.ponder
    is_given = ponder.bottom_k_fraction != default_of("bottom_k_fraction", ponder.method)
    if is_given and ponder.penalty.is_adaptive and _has(config, "penalty"):
        yield ConfigProblem(
            path="ponder.bottom_k_fraction",
            rule="must be left out for a penalty that finds its shares itself",
            value=f"{ponder.bottom_k_fraction:g} with ponder.penalty {ponder.penalty}",
            cure="leave it out, or set ponder.penalty to bottom_k",
        )


def _frozen_backbone(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder = config.ponder
    is_frozen = ponder.freeze_backbone_tokens > 0 and _has(config, "freeze_backbone_tokens")
    if is_frozen and ponder.num_latent_thoughts == 0:
        yield ConfigProblem(
            path="ponder.freeze_backbone_tokens",
            rule="needs steps to decide about (ponder.num_latent_thoughts above 0)",
            value=f"{ponder.freeze_backbone_tokens} with 0 steps",
            cure="leave it out",
        )


PONDER_RULES = (
    _settings_of_other_methods,
    _random_jacobi,
    _jacobi_schedule,
    _sweeps_need_thoughts,
    _mixture,
    _multiplied_embedding,
    _pause_token,
    _penalty_ramp,
    _decider_size,
    _undamped_sweeps,
    _bottom_k_fraction,
    _frozen_backbone,
)
