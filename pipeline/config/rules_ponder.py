"""Rules on the settings of the pondering method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from megatron_ext.ponder.config import Method, Mixture, Reading, ReadoutFrom, RouterKind
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


# (drawn from a range, by a schedule, what both set)
_NUMBERS_OF_STEPS = (
    ("random_jacobi_iterations", "jacobi_schedule", "J"),
    ("random_latent_thoughts", "thoughts_schedule", "K"),
)


def _drawn_numbers(config: RunConfig) -> Iterator[ConfigProblem]:
    for name, _, _ in _NUMBERS_OF_STEPS:
        bounds = getattr(config.ponder, name)
        if bounds is not None and bounds[0] > bounds[1] and _has(config, name):
            yield ConfigProblem(
                path=f"ponder.{name}",
                rule="must be [lowest, highest]",
                value=as_written(bounds),
                cure=f"write [{bounds[1]}, {bounds[0]}]",
            )


def _schedules(config: RunConfig) -> Iterator[ConfigProblem]:
    for drawn, name, number in _NUMBERS_OF_STEPS:
        schedule = getattr(config.ponder, name)
        if schedule is None or not _has(config, name):
            continue
        yield from _broken_schedule(name, schedule)
        if getattr(config.ponder, drawn) is not None:
            yield ConfigProblem(
                path=f"ponder.{name}",
                rule=f"must not be combined with ponder.{drawn}: both set {number} in training",
                value="both are given",
                cure="leave one of them out",
            )


def _broken_schedule(name: str, schedule: tuple[tuple[int, int], ...]) -> Iterator[ConfigProblem]:
    starts = [start for start, _ in schedule]
    if any(later <= earlier for earlier, later in pairwise(starts)):
        yield ConfigProblem(
            path=f"ponder.{name}",
            rule="must list every iteration once, in rising order",
            value=as_written(schedule),
            cure=f"try {as_written(sorted(dict(schedule).items()))}",
        )
    elif starts[0] != 0:
        yield ConfigProblem(
            path=f"ponder.{name}",
            rule="must start at iteration 0",
            value=as_written(schedule),
            cure=f"begin it with [0, {schedule[0][1]}]",
        )


def _thoughts_in_training(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder, most = config.ponder, config.ponder.num_latent_thoughts
    schedule = ponder.thoughts_schedule
    given: dict[str, Sequence[int] | None] = {
        "random_latent_thoughts": ponder.random_latent_thoughts,
        "thoughts_schedule": None if schedule is None else [steps for _, steps in schedule],
    }
    for name, numbers in given.items():
        if numbers is None or not _has(config, name):
            continue
        if max(numbers) > most:
            yield ConfigProblem(
                path=f"ponder.{name}",
                rule=f"must not exceed ponder.num_latent_thoughts ({most}), the K of the model",
                value=str(max(numbers)),
                cure=f"set ponder.num_latent_thoughts to {max(numbers)}",
            )
        if ponder.multiply_embedding:
            yield ConfigProblem(
                path=f"ponder.{name}",
                rule="must be left out with ponder.multiply_embedding: the first input depends on K",
                value="both are given",
                cure="leave one of them out",
            )
        if ponder.freeze_backbone_tokens > 0 and min(numbers) == 0:
            yield ConfigProblem(
                path=f"ponder.{name}",
                rule="must be at least 1 with ponder.freeze_backbone_tokens: without steps nothing learns",
                value="0",
                cure="begin with 1",
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


def _gradient_passes(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder, number = config.ponder, config.ponder.gradient_passes
    if number == "all" or not _has(config, "gradient_passes"):
        return
    if ponder.num_latent_thoughts == 0:
        yield ConfigProblem(
            path="ponder.gradient_passes",
            rule="needs latent thoughts, whose passes it counts (ponder.num_latent_thoughts above 0)",
            value=f"{number} with 0 thoughts",
            cure="leave it out",
        )
        return
    # Were some forwards shorter, what a step costs would not be linear in J any more.
    shortest = _fewest_thoughts(ponder) + min(_sweeps_in_training(ponder)) + 1
    if number > shortest:
        yield ConfigProblem(
            path="ponder.gradient_passes",
            rule=f"must be at most the passes of the shortest forward in training, K + J + 1 = {shortest}",
            value=str(number),
            cure=f"try {shortest}, or all",
        )
    if number == 1 and _has(config, "readout_from") and ponder.readout_from == ReadoutFrom.LAST_SWEEP:
        yield ConfigProblem(
            path="ponder.gradient_passes",
            rule="must be at least 2 with ponder.readout_from last_sweep, or the router learns nothing",
            value="1",
            cure="try 2",
        )


def _fewest_thoughts(ponder: PonderSection) -> int:
    """Return the smallest K in training above 0; forwards without thoughts have one pass anyway."""
    drawn, schedule = ponder.random_latent_thoughts, ponder.thoughts_schedule
    numbers: Sequence[int] = (ponder.num_latent_thoughts,)
    if drawn is not None:
        numbers = range(drawn[0], drawn[1] + 1)
    elif schedule is not None:
        numbers = [thoughts for _, thoughts in schedule]
    return min((number for number in numbers if number > 0), default=ponder.num_latent_thoughts)


def _sweeps_in_training(ponder: PonderSection) -> Sequence[int]:
    """Return J in training: all numbers of a schedule, or the ends of the range it is drawn from."""
    if ponder.random_jacobi_iterations is not None:
        return ponder.random_jacobi_iterations
    if ponder.jacobi_schedule is not None:
        return [sweeps for _, sweeps in ponder.jacobi_schedule]
    return (ponder.num_jacobi_iterations,)


def _sweep_tolerance(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder = config.ponder
    if ponder.sweep_tolerance is None or not _has(config, "sweep_tolerance"):
        return
    needed = 1 if ponder.gradient_passes == "all" else ponder.gradient_passes
    most = max(_sweeps_in_training(ponder))
    if ponder.num_latent_thoughts == 0 or most <= needed:
        yield ConfigProblem(
            path="ponder.sweep_tolerance",
            rule=f"needs a sweep that can be left out: J above {needed} in training",
            value=f"{ponder.sweep_tolerance:g} with J {most if ponder.num_latent_thoughts else 0}",
            cure="leave it out, or allow more sweeps (ponder.num_jacobi_iterations)",
        )
    reasons = {
        "parallel.pipeline": (config.parallel.pipeline > 1, "1, because pipeline stages fix the passes"),
        "ponder.router_damping": (ponder.router_damping < 1, "1, because the last sweeps are not damped"),
        "ponder.readout_from": (
            ponder.readout_from == ReadoutFrom.LAST_SWEEP,
            "final, because which sweep is the last is known only after it",
        ),
    }
    yield from _excluded_by("ponder.sweep_tolerance", reasons, config)


def _excluded_by(
    setting: str, reasons: Mapping[str, tuple[bool, str]], config: RunConfig
) -> Iterator[ConfigProblem]:
    """Report the settings that another one excludes.

    Args:
        setting: that excludes them.
        reasons: by setting, whether it is in the way, and what it must be and why.
        config: the run.
    """
    for path, (is_in_the_way, rule) in reasons.items():
        if is_in_the_way:
            section, name = path.split(".")
            yield ConfigProblem(
                path=path,
                rule=f"with {setting} must be {rule}",
                value=as_written(getattr(getattr(config, section), name)),
                cure=f"change it, or leave {setting} out",
            )


def _skip_pruned_rows(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder, parallel = config.ponder, config.parallel
    if not ponder.skip_pruned_rows or not _has(config, "skip_pruned_rows"):
        return
    if ponder.num_latent_thoughts == 0:
        yield ConfigProblem(
            path="ponder.skip_pruned_rows",
            rule="needs latent thoughts, whose rows it leaves out (ponder.num_latent_thoughts above 0)",
            value="true with 0 thoughts",
            cure="leave it out",
        )
    reasons = {
        "parallel.pipeline": (
            parallel.pipeline > 1,
            "1, because pipeline stages must know the rows of a pass before it",
        ),
        "parallel.context": (
            parallel.context > 1,
            "1, because the ranks that share a sequence would have different numbers of rows",
        ),
        "parallel.sequence_parallel": (
            parallel.sequence_parallel,
            "false, because the ranks of the tensor axis would have different numbers of rows",
        ),
        "ponder.reading": (
            ponder.reading == Reading.LAST_STEP,
            "mixture or detached_mixture, because a step that is not computed cannot be read",
        ),
        "ponder.step_loss_weight": (
            ponder.step_loss_weight > 0,
            "0, because steps that are not computed have no loss",
        ),
    }
    yield from _excluded_by("ponder.skip_pruned_rows", reasons, config)


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
    is_linear = _has(config, "router") and ponder.router == RouterKind.LINEAR
    if decider is None or decider.inner is None or is_linear:
        return
    if decider.num_hidden(config.model.hidden_size) == 0:
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


def _adaptive_penalty(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder = config.ponder
    if ponder.penalty.is_adaptive and ponder.reading == Reading.LAST_STEP and _has(config, "reading"):
        yield ConfigProblem(
            path="ponder.penalty",
            rule="must be expected_steps or bottom_k with ponder.reading last_step; others judge the mixture",
            value=ponder.penalty.value,
            cure="choose expected_steps, or leave ponder.reading out",
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


def _step_losses(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder = config.ponder
    if not _has(config, "entropy_floor"):
        return
    for name in ("step_loss_weight", "entropy_floor"):
        value = getattr(ponder, name)
        if value > 0 and ponder.num_latent_thoughts == 0:
            yield ConfigProblem(
                path=f"ponder.{name}",
                rule="needs steps to weigh (ponder.num_latent_thoughts above 0)",
                value=f"{value:g} with 0 steps",
                cure="leave it out",
            )
    most = math.log(ponder.num_latent_thoughts + 1)
    if ponder.num_latent_thoughts > 0 and ponder.entropy_floor > most:
        yield ConfigProblem(
            path="ponder.entropy_floor",
            rule=f"must be at most the entropy of equal shares, ln(K + 1) = {most:.3f}",
            value=f"{ponder.entropy_floor:g}",
            cure=f"try {most / 4:.2f}",
        )
    if ponder.entropy_floor == 0 and ponder.entropy_floor_weight != 1:
        yield ConfigProblem(
            path="ponder.entropy_floor_weight",
            rule="needs ponder.entropy_floor above 0",
            value=f"{ponder.entropy_floor_weight:g}",
            cure="leave it out, or set ponder.entropy_floor",
        )


def _start(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder, last = config.ponder, config.training.train_iters
    for name in ("blended_start_iterations", "held_decisions_iterations"):
        value = getattr(ponder, name)
        if value == 0 or not _has(config, name):
            continue
        if ponder.num_latent_thoughts == 0:
            yield ConfigProblem(
                path=f"ponder.{name}",
                rule="needs extra steps (ponder.num_latent_thoughts above 0)",
                value=f"{value} with 0 steps",
                cure="leave it out",
            )
        elif value > last:
            yield ConfigProblem(
                path=f"ponder.{name}",
                rule=f"must be at most training.train_iters ({last}), so that the start ends in the run",
                value=str(value),
                cure=f"try {max(1, last // 8)}",
            )


def _blended_start(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder = config.ponder
    is_blended = ponder.blended_start_iterations > 0 and _has(config, "blended_start_iterations")
    if is_blended and ponder.multiply_embedding:
        yield ConfigProblem(
            path="ponder.blended_start_iterations",
            rule="must be 0 with ponder.multiply_embedding: the first pass is then not the trained model",
            value=str(ponder.blended_start_iterations),
            cure="leave it out",
        )


def _held_decisions(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder = config.ponder
    is_held = ponder.held_decisions_iterations > 0 and _has(config, "held_decisions_iterations")
    if is_held and ponder.freeze_backbone_tokens > 0:
        yield ConfigProblem(
            path="ponder.held_decisions_iterations",
            rule="must be 0 with ponder.freeze_backbone_tokens: nothing at all would learn",
            value=f"{ponder.held_decisions_iterations} with {ponder.freeze_backbone_tokens}",
            cure="leave one of them out",
        )


PONDER_RULES = (
    _settings_of_other_methods,
    _drawn_numbers,
    _schedules,
    _thoughts_in_training,
    _sweeps_need_thoughts,
    _gradient_passes,
    _sweep_tolerance,
    _skip_pruned_rows,
    _mixture,
    _multiplied_embedding,
    _pause_token,
    _penalty_ramp,
    _decider_size,
    _undamped_sweeps,
    _bottom_k_fraction,
    _adaptive_penalty,
    _frozen_backbone,
    _step_losses,
    _start,
    _blended_start,
    _held_decisions,
)
