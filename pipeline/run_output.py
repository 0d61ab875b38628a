"""What a run shows and writes while it goes; only the first rank speaks."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed
from rich.console import Console

from megatron_ext.host import device
from megatron_ext.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from pipeline.checkpoint_folder import CONFIG_NAME
from pipeline.config.load import dump_config, render_config
from pipeline.config.schema import RunConfig
from pipeline.metrics.jsonl import METRICS_FILE, JsonlSink
from pipeline.metrics.log_line import LogLineSink
from pipeline.metrics.sinks import MetricsSink, SinkGroup
from pipeline.metrics.tensorboard import TENSORBOARD_FOLDER, TensorBoardSink
from pipeline.progress import NoProgress, TrainingProgress, open_progress
from pipeline.run_account import max_sweeps, run_summary
from pipeline.summary import render_summary


def config_file(config: RunConfig) -> Path:
    """Where the resolved configuration of a run lies."""
    return config.output_dir / CONFIG_NAME


def start_output(config: RunConfig, groups: ParallelGroups) -> None:
    """Make the run's folder and write the resolved configuration into it, before any rank goes on."""
    if groups.rank == 0:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        dump_config(config, config_file(config))
    torch.distributed.barrier()


def open_sinks(
    config: RunConfig, groups: ParallelGroups, progress: TrainingProgress, *, start_iteration: int
) -> SinkGroup:
    """Open the log line, metrics.jsonl and TensorBoard on the first rank, nothing on the others."""
    if groups.rank != 0:
        return SinkGroup()
    sinks: list[MetricsSink] = [LogLineSink(progress.say), JsonlSink(config.output_dir / METRICS_FILE)]
    if config.metrics.tensorboard:
        board = TensorBoardSink(
            config.output_dir / TENSORBOARD_FOLDER,
            method=config.ponder.method,
            num_latent_thoughts=config.ponder.num_latent_thoughts,
            max_jacobi_iterations=max_sweeps(config.ponder),
            purge_step=start_iteration + 1 if start_iteration else None,
        )
        board.write_configuration(config.model_dump(mode="json"), render_config(config))
        sinks.append(board)
    return SinkGroup(sinks)


def open_run_progress(config: RunConfig, groups: ParallelGroups, *, start_iteration: int) -> TrainingProgress:
    """Show the progress on the first rank."""
    if groups.rank != 0:
        return NoProgress()
    return open_progress(
        Console(stderr=True), start_iteration=start_iteration, total_iterations=config.training.train_iters
    )


def show_summary(config: RunConfig, vocab_size: int, module: PonderModel, groups: ParallelGroups) -> None:
    """Print the start-up summary once; every rank calls it, for its own count of parameters."""
    counts = _counts_on_tensor_axis(module, groups)
    if groups.rank == 0:
        summary = run_summary(config, vocab_size, parameters_per_rank=counts, device=_device_name())
        Console(stderr=True).print(render_summary(summary))


def _counts_on_tensor_axis(module: PonderModel, groups: ParallelGroups) -> Sequence[int]:
    own = torch.tensor([sum(parameter.numel() for parameter in module.parameters())], device=device())
    counts = [torch.empty_like(own) for _ in range(groups.tp_size)]
    torch.distributed.all_gather(counts, own, group=groups.tp)
    return [int(count) for count in counts]


def _device_name() -> str:
    if device().type == "cuda":
        return torch.cuda.get_device_name(device())
    return f"CPU ({torch.get_num_threads()} threads per rank)"
