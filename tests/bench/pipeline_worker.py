"""One rank of `python -m tests.bench pipeline`: time both ways to run the passes, in turns, on one layout."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
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
    """A model on a pipeline, and how its steps are done."""

    config: RunConfig
    groups: ParallelGroups
    parts: TrainingParts
    settings: ForwardSettings
    vocab_size: int

    def step(self, run: Callable[..., None], batches: Sequence[TokenBatch]) -> None:
        """Do one step from a common start to a common end, so that every rank times the slowest."""
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
    # However many cores there are, every stage has one.
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
    """Time forward, backward and gradient reduction of one step both ways; all ranks call it together.

    Args:
        bench: the model.
        num_micro_batches: a multiple of the stages.
        repeats: timed rounds.
    """
    batches = random_batches(bench.config, bench.vocab_size, num_micro_batches)
    ways: dict[str, Callable[[], object]] = {
        name: partial(bench.step, run, batches) for name, run in WAYS.items()
    }
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
        flushing_seconds=seconds["flushing"],
        largest_difference=_largest_difference(gradients["looping"], gradients["flushing"], bench.groups),
    )


def gradients_of(bench: PassBench) -> list[Tensor]:
    """Return the reduced gradient of every weight of this rank, as it lies in Megatron's buffer."""
    parameters: Sequence[Any] = list(bench.parts.module.parameters())
    return [parameter.main_grad for parameter in parameters]


def _mean_loss(output: ModelOutput) -> Tensor:
    """Train towards the tokens and, where a method has decisions, their penalty."""
    loss = output.token_losses.mean()
    return loss if output.penalty is None else loss + output.penalty


def _largest_difference(found: list[Tensor], expected: list[Tensor], groups: ParallelGroups) -> float:
    """Compare gradients weight by weight, relative to the largest element of each, over all stages."""
    differences = [_relative_difference(one, other) for one, other in zip(found, expected, strict=True)]
    # What is not a number counts as infinite: a maximum over ranks may lose it.
    largest = torch.stack(differences).nan_to_num(nan=math.inf).max()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=groups.pp)
    return float(largest)


def _relative_difference(found: Tensor, expected: Tensor) -> Tensor:
    difference = (found - expected).abs().max()
    # Two gradients that are both zero agree: the router's first layer has none at the start.
    return difference / torch.where(difference > 0, expected.abs().max(), 1)


if __name__ == "__main__":
    main()
