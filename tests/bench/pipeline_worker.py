"""One rank of `python -m tests.bench pipeline`, which times both ways to run the passes in turns."""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.device import device
from megatron_ext.host import prepare_host
from megatron_ext.model.micro_batch import ForwardSettings, ModelOutput, TokenBatch
from megatron_ext.parallel.groups import ParallelGroups, initialize_groups
from megatron_ext.schedule.pass_pipeline import run_passes
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.step.build import TrainingParts, build_training
from tests.bench.flushing import run_passes_flushing
from tests.bench.pipeline import PassTimes
from tests.bench.random_batches import DEFAULT_VOCAB_SIZE, random_batches
from tests.bench.timing import median_seconds

WAYS: dict[str, Callable[..., None]] = {"looping": run_passes, "flushing": run_passes_flushing}


@dataclass(frozen=True, slots=True, kw_only=True)
class PassBench:
    """A model on a pipeline, and the settings of its steps."""

    config: RunConfig
    groups: ParallelGroups
    parts: TrainingParts
    settings: ForwardSettings
    vocab_size: int

    def step(self, run: Callable[..., None], batches: Sequence[TokenBatch]) -> None:
        """Run one step between two barriers, so that every rank measures the slowest."""
        self.parts.ddp.zero_grad_buffer()
        dist.barrier()
        run(self.parts.ddp, batches, self.settings, loss=_mean_loss)
        dist.barrier()


def main() -> None:
    """Parse the arguments of :func:`tests.bench.pipeline.time_passes` and run this rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--micro-batches", type=int, nargs="+", required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    # One core per stage, no matter how many there are.
    torch.set_num_threads(1)
    prepare_host()
    config = load_config(arguments.config)
    ranks = Ranks.from_environment()
    start_process_group(ranks, timeout_seconds=config.parallel.timeout_seconds)
    try:
        groups = initialize_groups(pipeline=config.parallel.pipeline, seed=config.seed)
        bench = build_bench(config, groups)
        times = [time_both(bench, number, repeats=arguments.repeats) for number in arguments.micro_batches]
    finally:
        stop_process_group()
    if ranks.rank == 0:
        arguments.output.write_text(json.dumps([asdict(row) for row in times]), encoding="utf-8")


def build_bench(config: RunConfig, groups: ParallelGroups) -> PassBench:
    """Build the model of this rank."""
    vocab_size = config.model.vocab_size or DEFAULT_VOCAB_SIZE
    return PassBench(
        config=config,
        groups=groups,
        parts=build_training(config, vocab_size, groups),
        settings=ForwardSettings(num_jacobi_iterations=config.ponder.num_jacobi_iterations),
        vocab_size=vocab_size,
    )


def time_both(bench: PassBench, num_micro_batches: int, *, repeats: int) -> PassTimes:
    """Time forward, backward and gradient reduction of one step in both ways; all ranks call it together.

    Args:
        bench: the model.
        num_micro_batches: a multiple of the stages.
        repeats: timed rounds.
    """
    batches = random_batches(bench.config, bench.vocab_size, num_micro_batches)
    # A single stage has nothing to flush.
    names = list(WAYS) if bench.groups.pp_size > 1 else ["looping"]
    ways: dict[str, Callable[[], object]] = {name: partial(bench.step, WAYS[name], batches) for name in names}
    used: list[float] = []
    ways["looping"] = partial(_noting_cpu_seconds, ways["looping"], used)
    gradients = {}
    for name, step in ways.items():
        step()
        gradients[name] = [gradient.clone() for gradient in gradients_of(bench)]
    seconds = median_seconds(ways, repeats=repeats, device=device())
    return PassTimes(
        num_stages=bench.groups.pp_size,
        num_micro_batches=num_micro_batches,
        slots=bench.parts.module.ponder.plan(bench.settings.num_jacobi_iterations).slots,
        looping_seconds=seconds["looping"],
        flushing_seconds=seconds[names[-1]],
        largest_difference=_largest_difference(gradients["looping"], gradients[names[-1]], bench.groups),
        stage_cpu_seconds=_of_all_stages(median(used[-repeats:]), bench.groups),
    )


def _noting_cpu_seconds(step: Callable[[], object], used: list[float]) -> None:
    started = time.process_time()
    step()
    used.append(time.process_time() - started)


def _of_all_stages(seconds: float, groups: ParallelGroups) -> tuple[float, ...]:
    own = torch.tensor([seconds], dtype=torch.float64, device=device())
    every = [torch.empty_like(own) for _ in range(groups.pp_size)]
    dist.all_gather(every, own, group=groups.pp)
    return tuple(float(one) for one in every)


def gradients_of(bench: PassBench) -> list[Tensor]:
    """Return the reduced gradient of every weight of this rank, from Megatron's buffer."""
    parameters: Sequence[Any] = list(bench.parts.module.parameters())
    return [parameter.main_grad for parameter in parameters]


def _mean_loss(output: ModelOutput) -> Tensor:
    """Return the mean token loss plus the penalty of a method's decisions, if any."""
    loss = output.token_losses.mean()
    return loss if output.penalty is None else loss + output.penalty


def _largest_difference(found: list[Tensor], expected: list[Tensor], groups: ParallelGroups) -> float:
    """Compare gradients weight by weight, relative to the largest element of each, over all stages."""
    differences = [_relative_difference(one, other) for one, other in zip(found, expected, strict=True)]
    # NaN counts as infinite: a maximum over ranks might lose it.
    largest = torch.stack(differences).nan_to_num(nan=math.inf).max()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=groups.pp)
    return float(largest)


def _relative_difference(found: Tensor, expected: Tensor) -> Tensor:
    difference = (found - expected).abs().max()
    # Two zero gradients agree: the first layer of the router has a zero gradient at initialization.
    return difference / torch.where(difference > 0, expected.abs().max(), 1)


if __name__ == "__main__":
    main()
