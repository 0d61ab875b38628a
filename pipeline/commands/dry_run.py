"""`megaponder train --dry-run`: everything that can be checked without starting, in one go."""

from dataclasses import replace

from pipeline.config.load import render_changes, render_config
from pipeline.config.schema import RunConfig
from pipeline.shared.console import say


def dry_run(config: RunConfig, *, shows_all: bool) -> None:
    """Check what a run would read and resume from, and print its settings.

    Args:
        config: of the run, valid in itself.
        shows_all: print every setting, not only those that differ from the defaults.
    Raises:
        ConfigError, DataError, CheckpointError: the run would not start.
    """
    from pipeline.run.inputs import check_inputs

    check_inputs(config)
    lines = [*_identity(config), *_memory(config)]
    say(render_config(config) if shows_all else render_changes(config), nl=False)
    for line in lines:
        say(f"# {line}", err=True)
    say(f"# valid; needs {config.parallel.world_size} rank(s)", err=True)


def _identity(config: RunConfig) -> list[str]:
    """Check tokenizer, vocabulary and the checkpoint to resume from."""
    from pipeline.checkpoint.checksums import describe_damage, find_damage
    from pipeline.checkpoint.folder import checkpoint_folder
    from pipeline.checkpoint.identity import settings_identity
    from pipeline.checkpoint.tracker import latest_iteration
    from pipeline.run.identity import check_parameter_groups, identity_on_resuming, tokenizer_of
    from pipeline.shared.errors import CheckpointError

    tokenizer = tokenizer_of(config)
    lines = [f"tokenizer: {tokenizer or 'unknown: the data name none'}"]
    directory = config.checkpoint_directory
    iteration = latest_iteration(directory) if config.checkpoint.resume else None
    if iteration is None:
        return [*lines, f"starts from {config.init_from.path or 'scratch'}"]
    folder = checkpoint_folder(directory, iteration)
    damage = find_damage(folder, reads=False)
    if damage:
        raise CheckpointError(f"{folder} must be intact, but {describe_damage(damage)}")
    own = replace(settings_identity(config), tokenizer=tokenizer, vocab_size=_vocab_size(config))
    identity_on_resuming(config, own, folder, iteration=iteration)
    check_parameter_groups(config, folder)
    return [*lines, f"resumes from iteration {iteration} in {directory}"]


def _memory(config: RunConfig) -> list[str]:
    from pipeline.cost.peaks import DEVICES, GIB
    from pipeline.cost.plan import Assumptions, plan_run

    size, device = _vocab_size(config), DEVICES.get(config.submit.gpu)
    if size is None or device is None:
        return []
    planned = plan_run(config, size, Assumptions(device=device, reserve_bytes=0))
    return [f"memory: {planned.needed_bytes / GIB:.2f} GiB on the fullest rank, without the device's own"]


def _vocab_size(config: RunConfig) -> int | None:
    from data_prep.manifest import load_manifest
    from pipeline.run.identity import tokenizer_folder

    if config.model.vocab_size is not None:
        return config.model.vocab_size
    folder = tokenizer_folder(config)
    return None if folder is None else load_manifest(folder).header.tokenizer.vocab_size
