"""Checks on the submitting machine before anything is queued."""

from collections.abc import Iterator

from data_prep.manifest import load_manifest
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.schema import RunConfig
from pipeline.config.workflow_section import PrepareStep, TokenizerStep
from pipeline.cost.peaks import DEVICES, GIB
from pipeline.cost.plan import Assumptions, plan_run
from pipeline.run.inputs import input_problems
from pipeline.shared.errors import DataError
from pipeline.shared.secrets import is_masked

# For the CUDA context, libraries and fragmentation, as `megaponder plan` assumes.
_RESERVE_BYTES = 6 * GIB
# Has no effect on memory, the only figure of the plan that is used here.
_ANY_MFU = 0.4


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
        *_too_little_memory(config),
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
    plan = plan_run(
        config, vocab_size, Assumptions(device=device, mfu=_ANY_MFU, reserve_bytes=_RESERVE_BYTES)
    )
    if not plan.fits:
        yield ConfigProblem(
            path="submit.gpu",
            rule=f"must have {plan.needed_bytes / GIB:.1f} GiB for the fullest rank",
            value=f"{submit.gpu} with {device.memory_bytes / GIB:.1f} GiB",
            cure="see `megaponder plan` for layouts that fit, or set submit.check_memory to false",
        )


def _vocab_size(config: RunConfig) -> int | None:
    try:
        return load_manifest(config.data.manifest_folder).header.tokenizer.vocab_size
    except (ConfigError, DataError):
        # The problem of the data is reported; without data there is nothing to count.
        return None
