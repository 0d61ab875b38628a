"""Run the training step of one rank of a parallel layout on the meta device, in a group without peers.

The code is that of a training: process groups, model, Megatron's schedules, data parallelism and optimizer.
Tensors have shapes and no values, and collectives return at once.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import wraps
from typing import Any

import torch
import torch.distributed
from megatron.core.pipeline_parallel import schedules
from torch.testing._internal.distributed.fake_pg import FakeStore

import pipeline.step.build
import pipeline.step.megatron_config
import pipeline.step.train
from megatron_ext.device import device, standing_in
from megatron_ext.host import prepare_host
from megatron_ext.model.config import host_settings
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.config.schema import RunConfig
from pipeline.cost.account import max_sweeps, step_kinds
from pipeline.cost.memory import ROUNDS_IN_FLIGHT, RankMemory, rank_memories
from pipeline.cost.rank_sizes import rank_sizes
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.ranks.distributed import stop_process_group
from pipeline.rehearsal.ledger import Ledger
from pipeline.rehearsal.stand_ins import device_kernels
from pipeline.step.build import TrainingParts, build_training
from pipeline.step.settings import StepSettings, share_of_thoughts, step_settings
from pipeline.step.train import train_step

# Nothing waits in a rehearsal; Megatron asks for a limit all the same.
_NO_LIMIT = timedelta(hours=1)
_ROOTS = ("/megatron_ext/", "/pipeline/", "/megatron/core/")
# Phases of one micro-batch; all others happen once in a step.
FORWARD, HEAD, BACKWARD = "forward", "head", "backward"
_OF_MICRO_BATCH = frozenset({FORWARD, HEAD, BACKWARD})


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """Calls of one collective operation in a step.

    Attributes:
        phase: of the step.
        operation: as torch calls it.
        group: axes of the layout that it runs over, with the number of ranks.
        calls, num_bytes: of the whole step; bytes of the larger of input and output.
    """

    phase: str
    operation: str
    group: str
    calls: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Something that happens at a line of code.

    Attributes:
        what: happens there.
        where: file:line.
        calls: in a step.
    """

    what: str
    where: str
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """Calls of attention that CUDA would answer with one kernel.

    Attributes:
        kernel: flash, efficient or math.
        head_size: channels of a head.
        is_grouped: whether heads share keys.
        has_mask: whether a mask decides what is visible.
        calls: in a step.
    """

    kernel: str
    head_size: int
    is_grouped: bool
    has_mask: bool
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What one rank does and holds in a training step.

    Attributes:
        rank, stage: the rank and its pipeline stage.
        coordinates: of the rank on the axes, for people.
        planned: memory that the plan gives a rank of this stage.
        num_micro_batches, rehearsed_micro_batches: of a step, and how many of them were run; counts are of
            the whole step.
        state_bytes: between two steps.
        peak_bytes: most within a step.
        parts: bytes at the peak by what made them.
        collectives, waits, mixed, attention: see there.
        sent_bytes, received_bytes, messages: point to point, over the pipeline.
        flops: of matrix products and attention, the masked half of causal attention included.
        kernels: launches, about.
        moved_bytes: read and written by kernels other than products and attention, every operand once.
    """

    rank: int
    stage: int
    coordinates: str
    planned: RankMemory
    num_micro_batches: int
    rehearsed_micro_batches: int
    state_bytes: int
    peak_bytes: int
    parts: dict[str, int]
    collectives: tuple[Collective, ...]
    sent_bytes: int
    received_bytes: int
    messages: int
    flops: float
    kernels: int
    moved_bytes: int
    waits: tuple[Place, ...]
    mixed: tuple[Place, ...]
    attention: tuple[AttentionCall, ...]

    @property
    def plan_error(self) -> float:
        """Relative error of the planned peak."""
        return self.planned.peak / self.peak_bytes - 1


def distinct_ranks(config: RunConfig) -> tuple[int, ...]:
    """Return ranks of which every other one is a copy: the first and the last of each stage."""
    parallel = config.parallel
    size = parallel.world_size // parallel.pipeline
    return tuple(
        sorted({stage * size + offset for stage in range(parallel.pipeline) for offset in (0, size - 1)})
    )


def rehearse_rank(config: RunConfig, vocab_size: int, rank: int, *, documents_per_row: int = 1) -> Rehearsal:
    """Run the step of one rank.

    Args:
        config: the run; its layout gives the number of ranks.
        vocab_size: the tokenizer's, without padding.
        rank: within the layout.
        documents_per_row: of the made-up data, at least 1.
    """
    names: dict[str, str] = {}
    ledger = Ledger(_ROOTS, names)
    with standing_in(torch.device("meta")), device_kernels(ledger):
        prepare_host()
        torch.distributed.init_process_group(
            "fake", store=FakeStore(), rank=rank, world_size=config.parallel.world_size
        )
        try:
            parallel = config.parallel
            groups = initialize_groups(
                tensor=parallel.tensor,
                context=parallel.context,
                pipeline=parallel.pipeline,
                seed=config.seed,
                time_limit=_NO_LIMIT,
            )
            names.update(_names(groups))
            return _rehearse(config, vocab_size, groups, ledger, documents_per_row)
        finally:
            destroy_groups()
            stop_process_group()
            gc.collect()


def _rehearse(
    config: RunConfig, vocab_size: int, groups: ParallelGroups, ledger: Ledger, documents_per_row: int
) -> Rehearsal:
    num_stages, total = config.parallel.pipeline, config.num_micro_batches
    # With one stage all micro-batches are alike; with several so many fill the pipeline.
    number = min(total, 2 if num_stages == 1 else ROUNDS_IN_FLIGHT * num_stages)
    with ledger, _labelled(ledger):
        parts = build_training(config, vocab_size, groups)
        with ledger.during("step", "statistics"):
            statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=device())
        batches = [_batch(config, documents_per_row) for _ in range(number)]
        # The first step makes the state of the optimizer; the second is like all others.
        _step(config, parts, batches[: 1 if num_stages == 1 else num_stages], groups, statistics)
        gc.collect()
        state = ledger.live_bytes
        ledger.restart()
        _step(config, parts, batches, groups, statistics)
    sizes = rank_sizes(config, vocab_size)
    planned = rank_memories(replace(sizes, separates_documents=documents_per_row > 1))[groups.pp_rank]
    return _rehearsal(ledger, groups, planned, state=state, number=number, total=total)


def _step(
    config: RunConfig,
    parts: TrainingParts,
    batches: list[TokenBatch],
    groups: ParallelGroups,
    statistics: StatisticsAccumulator,
) -> None:
    """Run the longest training step, in the state in which a run spends most of its time."""
    ponder = config.ponder
    steps = step_kinds(config)[-1].num_latent_thoughts
    settings = StepSettings(
        num_jacobi_iterations=max_sweeps(ponder),
        penalty_weight=ponder.penalty_weight,
        bottom_k_fraction=ponder.bottom_k_fraction,
        # Where there is a blended start, its first step is the one that holds most.
        pondering_share=share_of_thoughts(config, 0) if steps else 1.0,
        gradient_passes=step_settings(config, iteration=0, consumed_tokens=0).gradient_passes,
        skips_pruned_rows=ponder.skip_pruned_rows,
    )
    train_step(parts, batches, settings, groups=groups, statistics=statistics)


def _batch(config: RunConfig, documents_per_row: int) -> TokenBatch:
    shape = (config.training.micro_batch_size, config.training.seq_length)
    position = torch.arange(shape[1])
    documents = position * documents_per_row // shape[1]
    return TokenBatch(
        tokens=torch.zeros(shape, dtype=torch.int64),
        labels=torch.zeros(shape, dtype=torch.int64),
        position_ids=position.expand(shape),
        document_ids=documents.expand(shape),
    )


@contextmanager
def _labelled(ledger: Ledger) -> Iterator[None]:
    """Tell the ledger what the running code is for, by wrapping the functions where that changes."""
    with ExitStack() as stack:

        def label(owner: Any, name: str, describe: Callable[..., tuple[str, str]]) -> None:
            function = getattr(owner, name)

            @wraps(function)
            def labelled(*args: Any, **kwargs: Any) -> Any:
                phase, part = describe(*args)
                with ledger.during(phase, part):
                    return function(*args, **kwargs)

            stack.callback(setattr, owner, name, function)
            setattr(owner, name, labelled)

        build, step = pipeline.step.build, pipeline.step.train
        label(build, "build_module", lambda *_: ("build", "weights and gradients"))
        label(build, "wrap_model", lambda *_: ("build", "weights and gradients"))
        label(build, "build_optimizer", lambda *_: ("build", "optimizer: main weights"))
        label(step, "prepare_update", lambda *_: ("update", "gradient norm"))
        label(step, "apply_update", lambda *_: ("update", "optimizer: moments"))
        label(PonderModel, "run_pass", lambda _model, _batch, index, *_: (FORWARD, f"pass {index}"))
        label(PonderModel, "_output", lambda *_: (HEAD, "logits and losses"))
        label(schedules, "backward_step", lambda *_, **__: (BACKWARD, "backward"))
        _without_drawing(stack)
        yield


def _without_drawing(stack: ExitStack) -> None:
    """Build weights on the device and leave them as they are: drawing takes the time, not the building."""
    owner = pipeline.step.megatron_config
    original = host_settings
    stack.callback(setattr, owner, "host_settings", original)
    owner.host_settings = lambda: {  # type: ignore[attr-defined]  # a name that it imports
        **original(),
        "use_cpu_initialization": False,
        "perform_initialization": False,
    }


def _names(groups: ParallelGroups) -> dict[str, str]:
    """Return torch's names of process groups -> the axes that they run over."""
    axes: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for axis in ("tp", "dp", "pp", "mp", "embd", "pos_embd", "dp_cp", "intra_dp_cp", "tp_dp_cp", "cp"):
        group = getattr(groups.pg_collection, axis, None)
        if isinstance(group, torch.distributed.ProcessGroup):
            axes.setdefault(group.group_name, []).append(axis)
            sizes[group.group_name] = group.size()
    everyone = torch.distributed.group.WORLD
    assert everyone is not None, "the process group has been started"
    axes[everyone.group_name], sizes[everyone.group_name] = ["world"], groups.world_size
    return {name: f"{found[0]}[{sizes[name]}]" for name, found in axes.items()}


def _rehearsal(
    ledger: Ledger, groups: ParallelGroups, planned: RankMemory, *, state: int, number: int, total: int
) -> Rehearsal:
    def scaled(phase: str, value: float) -> int:
        return round(value * total / number) if phase in _OF_MICRO_BATCH else round(value)

    def places(counter: Any) -> tuple[Place, ...]:
        return tuple(
            Place(what=what, where=where, calls=calls) for (what, where), calls in sorted(counter.items())
        )

    context = f", context {groups.cp_rank}" if groups.cp_size > 1 else ""
    return Rehearsal(
        rank=groups.rank,
        stage=groups.pp_rank,
        coordinates=f"tensor {groups.tp_rank}{context}, data {groups.dp_rank}, pipeline {groups.pp_rank}",
        planned=planned,
        num_micro_batches=total,
        rehearsed_micro_batches=number,
        state_bytes=state,
        peak_bytes=ledger.peak_bytes,
        parts={name: size for name, size in ledger.peak_parts.items() if size},
        collectives=tuple(
            Collective(
                phase=phase,
                operation=operation,
                group=group,
                calls=scaled(phase, calls),
                num_bytes=scaled(phase, ledger.collective_bytes[phase, operation, group]),
            )
            for (phase, operation, group), calls in sorted(ledger.collectives.items())
        ),
        sent_bytes=_all_sends(ledger, "sent", total / number),
        received_bytes=_all_sends(ledger, "received", total / number),
        messages=round(sum(ledger.sends.values()) * total / number),
        flops=sum(scaled(phase, flops) for phase, flops in ledger.flops.items()),
        kernels=sum(scaled(phase, kernels) for phase, kernels in ledger.kernels.items()),
        moved_bytes=sum(scaled(phase, size) for phase, size in ledger.moved_bytes.items()),
        waits=places(ledger.waits),
        mixed=places(ledger.mixed),
        attention=tuple(
            AttentionCall(
                kernel=kernel,
                head_size=head_size,
                is_grouped=is_grouped,
                has_mask=has_mask,
                calls=round(calls * total / number),
            )
            for (kernel, head_size, is_grouped, has_mask), calls in sorted(ledger.attention.items())
        ),
    )


def _all_sends(ledger: Ledger, direction: str, scale: float) -> int:
    return round(scale * sum(size for (found, _), size in ledger.send_bytes.items() if found == direction))
