"""Parallel layouts, micro-batches and recomputation with which a run fits, cheapest first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.load import build_config
from pipeline.config.messages import nearest_multiples
from pipeline.config.schema import ParallelConfig, RunConfig
from pipeline.cost.account import flops_account, mean_step
from pipeline.cost.flops import FlopsAccount, Recompute
from pipeline.cost.plan import Advice, Assumptions, RunPlan, plan_run

# Tensor-parallel ranks communicate in every layer and belong on one machine, which has so many devices.
SPLITS = (1, 2, 4, 8)
LARGEST_MICRO_BATCH = 64
# Assumed overhead of the tensor axis: 7 % for each doubling. A guess, not measured.
TENSOR_COST_EXPONENT = 0.1
# What selective recompute reads and writes again, over the time of a step: by the roofline of an H200.
SELECTIVE_COST = 1.03
# Of a step, to be worth another setting.
MOST_OF_TIME = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """One way to make a run fit.

    Attributes:
        overrides: for the command line, relative to the given run.
        relative_cost: estimated time over that of a run without recomputation, bubbles and tensor axis.
        plan: the run plan with them.
    """

    overrides: tuple[str, ...]
    relative_cost: float
    plan: RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    recompute: Recompute
    tensor: int
    pipeline: int
    micro_batch_size: int
    cost: float


def suggest(
    config: RunConfig,
    vocab_size: int,
    assumptions: Assumptions,
) -> list[Suggestion]:
    """Find ways in which a run fits on as many devices as it has, the global batch unchanged.

    One for each kind of recomputation: the cheapest, and of equally cheap ones that with the largest
    micro-batch.

    Args:
        config: the run.
        vocab_size: the tokenizer's, without padding.
        assumptions: as for the run plan.
    """
    found: list[Suggestion] = []
    taken: set[Recompute] = set()
    for choice in sorted(_choices(config, vocab_size), key=lambda each: (each.cost, -each.micro_batch_size)):
        shards = choice.tensor > 1 and not assumptions.device.is_cpu
        changed = None if choice.recompute in taken else _with(config, choice, shards_tokens=shards)
        if changed is None:
            continue
        plan = plan_run(changed, vocab_size, assumptions)
        if plan.fits:
            taken.add(choice.recompute)
            found.append(
                Suggestion(overrides=_overrides(config, changed), relative_cost=choice.cost, plan=plan)
            )
        if len(taken) == len(get_args(Recompute)):
            break
    return [each for place, each in enumerate(found) if _is_worth_it(each, found[:place])]


def micro_batch_advice(config: RunConfig, vocab_size: int, assumptions: Assumptions) -> list[Advice]:
    """Look for larger micro-batches that selective recompute makes room for, and that take less time.

    Args:
        config: a run that fits; only one without recompute gets advice.
        vocab_size: the tokenizer's, without padding.
        assumptions: as for the run plan; without the time of a step there is no advice.
    """
    before = plan_run(config, vocab_size, assumptions).step_time
    if config.parallel.recompute != "none" or before is None:
        return []
    # Stages take turns with as many micro-batches.
    ranks = config.parallel.data * config.parallel.pipeline
    sizes = _micro_batches(config.training.global_batch_size, ranks)
    times = {}
    for size in (each for each in sizes if each > config.training.micro_batch_size):
        plain, again = (
            plan_run(_resized(config, recompute, size), vocab_size, assumptions)
            for recompute in ("none", "selective")
        )
        if again.fits and again.step_time is not None and not plain.fits:
            times[size] = again.step_time.total
    best = min(times, key=lambda size: times[size], default=None)
    if best is None or times[best] > MOST_OF_TIME * before.total:
        return []
    reason = f"it fits, and by the roofline a step takes {1 - times[best] / before.total:.0%} less time"
    return [Advice(reason=reason, override=f"parallel.recompute=selective training.micro_batch_size={best}")]


def on_devices(config: RunConfig, num_devices: int) -> RunConfig:
    """Spread a run over a number of devices by its data axis.

    Args:
        config: the run.
        num_devices: one for each rank.

    Raises:
        ConfigError: the parallel layout does not divide them, or the global batch does not fit.
    """
    model_ranks = config.parallel.model_ranks
    if num_devices % model_ranks:
        raise ConfigError(
            [
                ConfigProblem(
                    path="--gpus",
                    rule=f"must be a multiple of parallel.tensor x context x pipeline ({model_ranks})",
                    value=str(num_devices),
                    cure=f"try {nearest_multiples(num_devices, model_ranks)}",
                )
            ]
        )
    return _changed(config, {"data": num_devices // model_ranks}, {})


def _is_worth_it(suggestion: Suggestion, cheaper: Sequence[Suggestion]) -> bool:
    """Whether it needs less memory than every cheaper one."""
    return all(suggestion.plan.needed_bytes < other.plan.needed_bytes for other in cheaper)


def _choices(config: RunConfig, vocab_size: int) -> Iterator[_Choice]:
    account = flops_account(config, vocab_size)
    num_passes = mean_step(config, account).num_passes
    # Passes without gradients are a schedule of their own.
    num_schedules = 1 if account.gradient_passes is None else 2
    # The context axis is kept: how long the sequences are is decided.
    ranks = config.parallel.world_size // config.parallel.context
    batch = config.training.global_batch_size
    for tensor in SPLITS:
        for pipeline in SPLITS:
            data = ranks // (tensor * pipeline)
            if data * tensor * pipeline != ranks:
                continue
            for size in _micro_batches(batch, data):
                count = batch // (size * data)
                stages = _stage_cost(pipeline, count, num_passes / num_schedules)
                for recompute in get_args(Recompute):
                    again = _recompute_cost(config, account, recompute)
                    cost = again * stages * tensor**TENSOR_COST_EXPONENT
                    yield _Choice(
                        recompute=recompute,
                        tensor=tensor,
                        pipeline=pipeline,
                        micro_batch_size=size,
                        cost=round(cost, 3),
                    )


def _micro_batches(global_batch: int, data: int) -> Sequence[int]:
    sizes, size = [], 1
    while size <= LARGEST_MICRO_BATCH:
        if global_batch % (size * data) == 0:
            sizes.append(size)
        size *= 2
    return sizes


def _stage_cost(pipeline: int, num_micro_batches: int, num_passes: float) -> float:
    """Time with the pipeline's bubble over time without it, for equal passes."""
    return 1 + (pipeline - 1) / (num_passes * num_micro_batches)


def _recompute_cost(config: RunConfig, account: FlopsAccount, recompute: Recompute) -> float:
    training = mean_step(config, replace(account, recompute=recompute)).flops
    cheap = SELECTIVE_COST if recompute == "selective" else 1.0
    return cheap * training.hardware / training.model


def _with(config: RunConfig, choice: _Choice, *, shards_tokens: bool) -> RunConfig | None:
    """Return the run with a choice applied; None where the configuration rules forbid it."""
    data = config.parallel.world_size // (choice.tensor * config.parallel.context * choice.pipeline)
    parallel = {
        "tensor": choice.tensor,
        "pipeline": choice.pipeline,
        "data": data,
        "recompute": choice.recompute,
        "sequence_parallel": shards_tokens,
        "layers_per_stage": None if choice.pipeline != config.parallel.pipeline else _given_layers(config),
        "overlap_grad_reduce": False,
    }
    try:
        return _changed(config, parallel, {"micro_batch_size": choice.micro_batch_size})
    except ConfigError:
        return None


def _resized(config: RunConfig, recompute: str, micro_batch_size: int) -> RunConfig:
    return _changed(config, {"recompute": recompute}, {"micro_batch_size": micro_batch_size})


def _given_layers(config: RunConfig) -> list[int] | None:
    layers = config.parallel.layers_per_stage
    return None if layers is None else list(layers)


def _changed(config: RunConfig, parallel: dict[str, Any], training: dict[str, Any]) -> RunConfig:
    settings = config.model_dump(mode="json")
    settings["parallel"] |= parallel
    settings["training"] |= training
    return build_config(settings)


def _overrides(before: RunConfig, after: RunConfig) -> tuple[str, ...]:
    """Return what differs as overrides for the command line."""
    changes = [
        f"parallel.{name}={_as_yaml(getattr(after.parallel, name))}"
        for name in ParallelConfig.model_fields
        if getattr(after.parallel, name) != getattr(before.parallel, name)
    ]
    if after.training.micro_batch_size != before.training.micro_batch_size:
        changes.append(f"training.micro_batch_size={after.training.micro_batch_size}")
    return tuple(changes)


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
