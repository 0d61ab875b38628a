"""What a run prints and writes; only rank 0 does."""

import logging
from pathlib import Path
from typing import Any

from megatron_ext.device import computes_bf16, device_name
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from pipeline.checkpoint.folder import CONFIG_NAME
from pipeline.checkpoint.identity import RunIdentity, write_identity
from pipeline.config.errors import ConfigError
from pipeline.config.load import changed_settings, dump_config, render_config
from pipeline.config.schema import RunConfig
from pipeline.cost.account import max_sweeps
from pipeline.cost.peaks import dense_peak
from pipeline.metrics.history import record_start
from pipeline.metrics.jsonl import METRICS_FILE, JsonlSink
from pipeline.metrics.log_line import LogLineSink
from pipeline.metrics.names import TENSORBOARD_FOLDER
from pipeline.metrics.optional_sinks import BackgroundSink, OptionalSink
from pipeline.metrics.records import MetricsSink, SinkGroup, TrainingRecord
from pipeline.metrics.short_line import ShortLineSink
from pipeline.metrics.tensorboard import TensorBoardSink
from pipeline.metrics.tracking import missing_packages
from pipeline.run.layout import render_layout, stages_of
from pipeline.run.summary import render_summary, run_summary
from pipeline.run.unwritable import naming_unwritable_outputs, on_rank_zero
from pipeline.shared.console import open_console
from pipeline.shared.files import remove_temporaries
from pipeline.shared.progress import BarProgress, LinesProgress, Progress, SilentProgress

logger = logging.getLogger(__name__)


def config_file(config: RunConfig) -> Path:
    """Return the path of the resolved configuration of a run."""
    return config.output_dir / CONFIG_NAME


def start_output(
    config: RunConfig, groups: ParallelGroups, identity: RunIdentity, *, start_iteration: int
) -> None:
    """Create the run's folder with the resolved configuration and what it is; all ranks wait for it.

    Args:
        config: the run.
        groups: its layout.
        identity: of the run; on rank 0 with the origin.
        start_iteration: the last one that is done.
    Raises:
        UserError: on every rank, if it cannot be written.
    """

    def start() -> None:
        with naming_unwritable_outputs(config):
            config.output_dir.mkdir(parents=True, exist_ok=True)
            remove_temporaries(config.output_dir)
            dump_config(config, config_file(config))
            write_identity(config.output_dir, identity, None)
            if identity.origin is not None:
                record_start(config.output_dir, identity.origin, iteration=start_iteration)

    on_rank_zero(start, rank=groups.rank)


def open_sinks(
    config: RunConfig, groups: ParallelGroups, progress: Progress, *, start_iteration: int
) -> SinkGroup:
    """Open all sinks on rank 0, nothing on the others; every rank calls it.

    Raises:
        UserError: on every rank, if they cannot be written, or the package of a sink is not installed.
    """

    def opened() -> SinkGroup:
        missing = missing_packages(config)
        if missing:
            raise ConfigError(missing)
        with naming_unwritable_outputs(config):
            return SinkGroup(_sinks(config, progress, start_iteration=start_iteration))

    return on_rank_zero(opened, rank=groups.rank) or SinkGroup()


def _sinks(config: RunConfig, progress: Progress, *, start_iteration: int) -> list[MetricsSink]:
    # Scripts read Megatron's line from files and pipes; on a terminal people read.
    line = ShortLineSink(progress.say) if isinstance(progress, BarProgress) else LogLineSink(progress.say)
    sinks: list[MetricsSink] = [line, JsonlSink(config.output_dir / METRICS_FILE)]
    if config.metrics.tensorboard:
        board = TensorBoardSink(
            config.output_dir / TENSORBOARD_FOLDER,
            method=config.ponder.method,
            num_latent_thoughts=config.ponder.num_latent_thoughts,
            sweeps_steps=config.evaluation.sweep_steps,
            max_jacobi_iterations=max_sweeps(config.ponder),
            penalty=config.ponder.penalty,
            purge_step=start_iteration + 1 if start_iteration else None,
        )
        board.write_configuration(changed_settings(config), render_config(config))
        sinks.append(OptionalSink("TensorBoard", board))
    return [*sinks, *(_service(name, config, resumes=start_iteration > 0) for name in config.metrics.sinks)]


def _service(name: str, config: RunConfig, *, resumes: bool) -> MetricsSink:
    settings: dict[str, Any] = {
        "project": config.metrics.project,
        "name": config.name,
        "settings": config.model_dump(mode="json"),
        "resumes": resumes,
    }

    def opened() -> MetricsSink:
        if name == "wandb":
            from pipeline.metrics.wandb_sink import WandbSink

            return WandbSink(config.output_dir, **settings)
        from pipeline.metrics.mlflow_sink import MlflowSink

        return MlflowSink(config.output_dir, **settings)

    return BackgroundSink(name, opened)


def open_run_progress(config: RunConfig, groups: ParallelGroups, *, start_iteration: int) -> Progress:
    """Show a bar of the iterations that are done on a terminal of rank 0; elsewhere lines alone say it."""
    if groups.rank != 0:
        return SilentProgress()
    console = open_console(stderr=True)
    if not console.is_terminal:
        return LinesProgress(console)
    return BarProgress(
        console, "training", total=config.training.train_iters, completed=start_iteration, is_kept=True
    )


def render_state(record: TrainingRecord) -> str:
    """Render what the bar shows beside the share that is done and the time left."""
    return f"{record.iteration:,} of {record.total_iterations:,}"


def show_summary(config: RunConfig, vocab_size: int, module: PonderModel, groups: ParallelGroups) -> None:
    """Print the start-up summary and, for several ranks, what each of them holds; every rank calls it."""
    stages = stages_of(module, groups)
    if groups.rank != 0:
        return
    counts = [stage.parameters for stage in stages]
    summary = run_summary(
        config,
        vocab_size,
        parameters_per_rank=counts,
        device=device_name(),
        fuses=module.config.fuses,
    )
    console = open_console(stderr=True)
    console.print(render_summary(summary))
    if groups.world_size > 1:
        console.print(render_layout(config, stages))
    warn_of_slow_precision(config)


def warn_of_slow_precision(config: RunConfig) -> None:
    """Log a warning where a run computes in bf16 and its device has no instructions for it."""
    if config.training.precision == "bf16" and not computes_bf16():
        logger.warning(
            "training.precision is bf16, for which this CPU has no instructions: steps take several times as "
            "long as with fp32"
        )


def peak_flops(config: RunConfig) -> float | None:
    """Return the dense peak of this rank's device in the run's precision; None if it is unknown."""
    peak = dense_peak(device_name())
    return None if peak is None else peak.at(config.training.precision)
