"""One rank of a parity run: train a few steps, write nothing but what they measured."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from megatron_ext.device import device
from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.commands.shared import exit_on_user_error, set_up_logging
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.metrics.ponder_scalars import mean_loss
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.step.build import build_training, open_training_split, training_batches, vocab_size_of
from pipeline.step.settings import step_settings
from pipeline.step.train import train_step
from pipeline.verification.parity.compare import Measured


def main() -> None:
    """Parse the arguments of :func:`pipeline.verification.parity.command.run_parity` and run this rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    ranks = Ranks.from_environment()
    set_up_logging(speaks=False)
    with exit_on_user_error():
        measured = _measure(load_config(arguments.config), ranks, arguments.steps)
    if ranks.rank == 0:
        arguments.output.write_text(json.dumps([asdict(step) for step in measured]), encoding="utf-8")


def _measure(config: RunConfig, ranks: Ranks, num_steps: int) -> list[Measured]:
    prepare_host()
    start_process_group(ranks, timeout_seconds=config.parallel.timeout_seconds)
    try:
        groups = initialize_groups(
            tensor=config.parallel.tensor,
            context=config.parallel.context,
            pipeline=config.parallel.pipeline,
            seed=config.seed,
        )
        return _train(config, groups, num_steps)
    finally:
        destroy_groups()
        stop_process_group()


def _train(config: RunConfig, groups: ParallelGroups, num_steps: int) -> list[Measured]:
    data = open_training_split(config)
    parts = build_training(config, vocab_size_of(config, data), groups)
    batches = training_batches(config, data, groups)
    statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=device())
    samples, tokens = config.training.global_batch_size, config.training.seq_length
    measured = []
    for step in range(num_steps):
        settings = step_settings(config, iteration=step, consumed_tokens=step * samples * tokens)
        result = train_step(
            parts, batches.micro_batches(step * samples), settings, groups=groups, statistics=statistics
        )
        loss = mean_loss(statistics.reduce(groups.dp, groups.pp))
        norm = float("nan") if result.grad_norm is None else result.grad_norm
        measured.append(Measured(loss=loss, grad_norm=norm))
    return measured


if __name__ == "__main__":
    main()
