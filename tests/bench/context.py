"""Time of a training step on long rows by parallel layout: one rank, the tensor axis, the context axis."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from pipeline.config.load import build_config
from pipeline.shared.progress import Progress
from tests.support.ranks import RankPool

# Two ranks each, but for the first.
LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "one rank": {},
    "tensor 2": {"tensor": 2},
    "tensor 2, sequence parallel": {"tensor": 2, "sequence_parallel": True},
    "context 2": {"context": 2},
}
# Relative difference of losses in fp32 that is rounding.
ROUNDING = 1e-5
_LIMIT_SECONDS = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSizes:
    """Sizes of the model and of a step, which is one row."""

    seq_length: int = 4096
    hidden_size: int = 128
    num_layers: int = 2
    vocab_size: int = 2048
    num_latent_thoughts: int = 1
    num_jacobi_iterations: int = 1

    def settings(self, layout: str) -> dict[str, Any]:
        """Return the settings of a run on a layout."""
        return {
            "name": "bench_context",
            "model": {
                "architecture": "llama",
                "num_layers": self.num_layers,
                "hidden_size": self.hidden_size,
                "ffn_hidden_size": 11 * self.hidden_size // 4,
                "num_attention_heads": 4,
                "vocab_size": self.vocab_size,
                "max_position_embeddings": self.seq_length,
            },
            "ponder": {
                "method": "ponderlm3",
                "num_latent_thoughts": self.num_latent_thoughts,
                "num_jacobi_iterations": self.num_jacobi_iterations,
            },
            "parallel": dict(LAYOUTS[layout]),
            "training": {
                "seq_length": self.seq_length,
                "micro_batch_size": 1,
                "global_batch_size": 1,
                "train_iters": 2,
                "precision": "fp32",
            },
            "optimizer": {"lr": 1e-3},
            "data": {"path": "not-read"},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """One step on one rank: elapsed and CPU seconds, and the loss."""

    seconds: float
    cpu_seconds: float
    loss: float


@dataclass(slots=True, kw_only=True)
class LayoutTimes:
    """The timed steps of one layout, one of each round.

    Attributes:
        layout: a name from :data:`LAYOUTS`.
        num_ranks: of the layout.
        seconds: of the slowest rank.
        cpu_seconds: of all ranks together.
        loss: of the first step.
    """

    layout: str
    num_ranks: int
    loss: float
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def add(self, by_rank: Sequence[StepFigures]) -> None:
        """Add a step."""
        self.seconds.append(max(figures.seconds for figures in by_rank))
        self.cpu_seconds.append(sum(figures.cpu_seconds for figures in by_rank))

    def share_of(self, other: "LayoutTimes") -> float:
        """Return the time of a step relative to another layout: the median ratio of the rounds."""
        return median(own / their for own, their in zip(self.seconds, other.seconds, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextTimes:
    """All layouts, in the order of :data:`LAYOUTS`, and the load average of a minute at start and end."""

    layouts: list[LayoutTimes]
    load: tuple[float, float]


def time_layouts(sizes: ContextSizes, *, rounds: int, progress: Progress) -> ContextTimes:
    """Time a training step on every layout, in turns, on gloo ranks of one thread each.

    Every turn builds the model, takes one step that is not timed, and one that is. Before the first round
    each layout takes one step, and the losses are compared.

    Args:
        sizes: of the model and the row.
        rounds: timed steps of each.
        progress: of rounds, the first step of all layouts included.
    Raises:
        RuntimeError: losses differ by more than rounding, or a rank failed.
    """
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        pools = {size: stack.enter_context(RankPool(size)) for size in (1, 2)}

        def run(layout: str, num_steps: int) -> list[list[StepFigures]]:
            pool = pools[2 if LAYOUTS[layout] else 1]
            by_rank = pool.run(run_steps, sizes.settings(layout), num_steps, timeout_seconds=_LIMIT_SECONDS)
            return [list(step) for step in zip(*by_rank, strict=True)]

        times = [_first_step(layout, run(layout, 1)[0]) for layout in LAYOUTS]
        _check_losses(times)
        progress.advance()
        for _ in range(rounds):
            for one in times:
                one.add(run(one.layout, 2)[-1])
            progress.advance()
    return ContextTimes(layouts=times, load=(load, os.getloadavg()[0]))


def run_steps(settings: Mapping[str, Any], num_steps: int) -> list[StepFigures]:
    """Train so many steps on random tokens, as one rank of the layout of the settings."""
    from megatron_ext.device import device
    from megatron_ext.host import prepare_host
    from megatron_ext.parallel.groups import destroy_groups, initialize_groups
    from pipeline.metrics.statistics import StatisticsAccumulator
    from pipeline.step.build import build_training
    from pipeline.step.settings import StepSettings
    from pipeline.step.train import train_step
    from tests.bench.random_batches import DEFAULT_VOCAB_SIZE, random_batches

    prepare_host()
    run = build_config(dict(settings))
    groups = initialize_groups(tensor=run.parallel.tensor, context=run.parallel.context, seed=run.seed)
    try:
        vocab_size = run.model.vocab_size or DEFAULT_VOCAB_SIZE
        parts = build_training(run, vocab_size, groups)
        batches = random_batches(run, vocab_size, 1)
        statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=device())
        step = StepSettings(
            num_jacobi_iterations=run.ponder.num_jacobi_iterations, penalty_weight=run.ponder.penalty_weight
        )
        found = []
        for _ in range(num_steps):
            start, cpu_start = time.perf_counter(), time.process_time()
            loss = train_step(parts, batches, step, groups=groups, statistics=statistics).loss
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            found.append(StepFigures(seconds=seconds, cpu_seconds=cpu_seconds, loss=float(loss)))
        return found
    finally:
        destroy_groups()


def _first_step(layout: str, by_rank: Sequence[StepFigures]) -> LayoutTimes:
    return LayoutTimes(layout=layout, num_ranks=len(by_rank), loss=by_rank[0].loss)


def _check_losses(times: Sequence[LayoutTimes]) -> None:
    expected = times[0].loss
    wrong = [one for one in times if not abs(one.loss - expected) <= ROUNDING * abs(expected)]
    if wrong:
        found = ", ".join(f"{one.layout}: {one.loss!r}" for one in wrong)
        raise RuntimeError(f"the loss must be that of one rank, {expected!r}, but is not: {found}")
