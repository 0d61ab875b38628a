"""Checks on the submitting machine before anything is queued."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.manifest import load_manifest
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.schema import RunConfig
from pipeline.config.submit_section import wall_seconds
from pipeline.config.workflow_section import PrepareStep, TokenizerStep
from pipeline.cost.peaks import DEVICES, GIB
from pipeline.cost.plan import Assumptions, plan_run
from pipeline.run.inputs import input_problems
from pipeline.shared.errors import DataError
from pipeline.shared.secrets import is_masked

# For the CUDA context, libraries and fragmentation, as `megaponder plan` assumes.
_RESERVE_BYTES = 6 * GIB
# Of the driver; the last one is that of Windows Subsystem for Linux.
_DEVICE_FILES = (
    (Path("/proc/driver/nvidia/gpus"), "*"),
    (Path("/dev"), "nvidia[0-9]*"),
    (Path("/dev"), "dxg"),
)
# So much longer than planned a step may take: other kernels, other machines, a slow start.
_SLOWER = 2.0


def check_run(config: RunConfig, *, expects_data: bool = True) -> None:
    """Check that a run's inputs exist and that it fits its devices.

    Args:
        config: of the run, valid in itself.
        expects_data: False where an earlier step of the same submission makes the data.

    Raises:
        ConfigError: with all problems.
    """
    problems = [
        *input_problems(config, expects_data=expects_data),
        *_no_gpus_here(config),
        *_too_little_memory(config),
        *too_slow(config),
    ]
    if problems:
        raise ConfigError(problems)


def refuse_masked(config: RunConfig) -> None:
    """Check that no secret of a configuration is lost, as in one that was stored with a run.

    Raises:
        ConfigError: with all of them.
    """
    submit = config.submit
    texts = {f"submit.environment.{name}": value for name, value in submit.environment.items()}
    texts |= {f"submit.setup.{index}": line for index, line in enumerate(submit.setup)}
    texts |= {f"submit.options.{index}": line for index, line in enumerate(submit.options)}
    texts |= {"submit.ray_address": submit.ray_address or ""}
    for step in config.workflow:
        if isinstance(step, PrepareStep | TokenizerStep):
            texts |= {f"workflow ({step.name}).inputs": text for text in step.inputs if is_masked(text)}
    problems = [
        ConfigProblem(
            path=name,
            rule="must be the value itself when a job is submitted",
            value=f"masked ({text!r})",
            cure="give it again: a stored configuration has no secrets",
        )
        for name, text in texts.items()
        if is_masked(text)
    ]
    if problems:
        raise ConfigError(problems)


def has_gpus() -> bool:
    """Whether this machine has NVIDIA devices, as far as its files tell."""
    return any(next(folder.glob(pattern), None) for folder, pattern in _DEVICE_FILES)


def _no_gpus_here(config: RunConfig) -> Iterator[ConfigProblem]:
    """Devices that the ranks would not use, or that a local job would never get."""
    submit = config.submit
    if submit.gpus_per_node > 0 and config.parallel.device == "cpu":
        yield ConfigProblem(
            path="submit.gpus_per_node",
            rule="must be 0 where parallel.device is cpu",
            value=str(submit.gpus_per_node),
            cure="set it to 0, or parallel.device to cuda",
        )
    elif submit.target == "local" and submit.gpus_per_node > 0 and not has_gpus():
        yield ConfigProblem(
            path="submit.gpus_per_node",
            rule="must be 0 on a machine without NVIDIA devices, which runs the job itself",
            value=str(submit.gpus_per_node),
            cure="set it to 0 to train on the CPU, or submit to slurm or ray",
        )


def _too_little_memory(config: RunConfig) -> Iterator[ConfigProblem]:
    submit = config.submit
    if submit.gpus_per_node == 0 or not submit.check_memory:
        return
    device = DEVICES.get(submit.gpu)
    if device is None:
        yield ConfigProblem(
            path="submit.gpu",
            rule=f"must be one of {', '.join(DEVICES)}",
            value=submit.gpu,
            cure="set submit.check_memory to false for another device",
        )
        return
    vocab_size = config.model.vocab_size or _vocab_size(config)
    if vocab_size is None:
        return
    plan = plan_run(config, vocab_size, Assumptions(device=device, reserve_bytes=_RESERVE_BYTES))
    if not plan.fits:
        yield ConfigProblem(
            path="submit.gpu",
            rule=f"must have {plan.needed_bytes / GIB:.1f} GiB for the fullest rank",
            value=f"{submit.gpu} with {device.memory_bytes / GIB:.1f} GiB",
            cure="see `megaponder plan` for layouts that fit, or set submit.check_memory to false",
        )


def planned_step_seconds(config: RunConfig) -> float | None:
    """Return how long a step takes according to the plan; None where device or vocabulary are unknown."""
    submit = config.submit
    device = DEVICES.get(submit.gpu) if submit.gpus_per_node else None
    vocab_size = config.model.vocab_size or _vocab_size(config)
    if device is None or vocab_size is None:
        return None
    plan = plan_run(config, vocab_size, Assumptions(device=device, reserve_bytes=_RESERVE_BYTES))
    if plan.tokens_per_second is None:
        return None
    training = config.training
    return training.global_batch_size * training.seq_length / plan.tokens_per_second


def too_slow(config: RunConfig) -> Iterator[ConfigProblem]:
    """Steps that the watchdog or the end of the wall time would cut off, again and again."""
    step = planned_step_seconds(config)
    if step is None:
        return
    submit, checkpoint = config.submit, config.checkpoint
    micro_batch, watchdog = step / config.num_micro_batches, config.parallel.watchdog_seconds
    if 0 < watchdog < _SLOWER * micro_batch:
        yield ConfigProblem(
            path="parallel.watchdog_seconds",
            rule=f"must be at least twice the {micro_batch:.0f} s that a micro-batch takes on {submit.gpu}",
            value=str(watchdog),
            cure=f"set parallel.timeout_seconds above {round(2 * _SLOWER * micro_batch)}, or take more ranks",
        )
    if submit.signal_lead_seconds is not None and submit.signal_lead_seconds < step:
        yield ConfigProblem(
            path="submit.signal_lead_seconds",
            rule=f"must be above the {step:.0f} s of a step on {submit.gpu}, which a stop signal waits for",
            value=str(submit.signal_lead_seconds),
            cure="leave it out: it is derived from the plan, and later from measured times",
        )
    if submit.wall_time is None:
        return
    wall = wall_seconds(submit.wall_time)
    by_interval = (checkpoint.interval or config.training.train_iters) * step
    reached = min(by_interval, config.training.train_iters * step)
    if checkpoint.minutes is not None:
        reached = min(reached, 60 * checkpoint.minutes + step)
    if reached > wall:
        yield ConfigProblem(
            path="checkpoint.minutes",
            rule=f"must be given: the first checkpoint would be written after {reached / 3600:.1f} h of a "
            f"wall time of {wall / 3600:.1f} h, at {step:.0f} s a step on {submit.gpu}",
            value="not given" if checkpoint.minutes is None else f"{checkpoint.minutes:g}",
            cure="set checkpoint.minutes: 60, or a smaller checkpoint.interval",
        )


def _vocab_size(config: RunConfig) -> int | None:
    try:
        return load_manifest(config.data.manifest_folder).header.tokenizer.vocab_size
    except (ConfigError, DataError):
        # The problem of the data is reported; without data there is nothing to count.
        return None
