"""Load a run, or only its weights, on any parallel layout."""

from pathlib import Path
from typing import Any

from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException

from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.protocols import MegatronOptimizer, ParameterScheduler, ShardedModule
from pipeline.checkpoint.agreement import names_on_all_ranks
from pipeline.checkpoint.content import (
    GENERATORS_KEY,
    LAYOUT_KEY,
    OPTIMIZER_PREFIXES,
    layout_of,
    restore_generators,
    sharded_state,
)
from pipeline.checkpoint.folder import CONFIG_NAME
from pipeline.checkpoint.state import TrainState, read_train_state
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.checkpoint.unpickling import read_common
from pipeline.shared.errors import CheckpointError
from pipeline.shared.foreign_files import read_json_object

FORMAT_NAME = "metadata.json"
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
# Taken from the configuration, not from the checkpoint: a resumed run may change them.
_GROUP_SETTINGS = ("max_lr", "min_lr", "betas", "eps", "momentum", "num_ns_steps")


def load_checkpoint(
    path: Path,
    *,
    module: ShardedModule,
    optimizer: MegatronOptimizer,
    scheduler: ParameterScheduler,
    groups: ParallelGroups,
    iteration: int | None = None,
) -> TrainState:
    """Restore a run, on the layout it was saved with or on another one; all ranks call it together.

    On the same layout the random generators are restored too; on another one they keep their seeds. Learning
    rates, betas and lengths of the schedule are those of the configuration; its position is restored.

    Args:
        path: checkpoint folder of a run, or one ``iter_`` folder.
        module: the model without wrappers, built with the settings of the saved run.
        optimizer: from ``build_optimizer``.
        scheduler: Megatron's, not yet stepped.
        groups: the parallel layout to load onto.
        iteration: which one; None means the newest.
    Raises:
        CheckpointError: it does not exist, or its tensors are not those of this model and optimizer.
    """
    folder = resolve_checkpoint(path, iteration=iteration)
    state = read_train_state(folder)
    _check_has_optimizer(folder, state)
    metadata = content_of(folder)
    has_same_layout = metadata.pop(LAYOUT_KEY, None) == layout_of(groups)
    content = sharded_state(
        module, optimizer, groups if has_same_layout else None, metadata=metadata, is_loading=True
    )
    settings = [
        {name: group[name] for name in _GROUP_SETTINGS if name in group} for group in optimizer.param_groups
    ]
    loaded, missing, unexpected = read_sharded(content, folder, groups.dp_cp)
    _check_names(folder, missing=missing, unexpected=without_prefixes(unexpected, GENERATORS_KEY))
    module.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    for group, own_settings in zip(optimizer.param_groups, settings, strict=True):
        group.update(own_settings)
    scheduler.load_state_dict(loaded["opt_param_scheduler"])
    if has_same_layout:
        restore_generators(loaded[GENERATORS_KEY])
    return state


def load_weights(
    path: Path, *, module: ShardedModule, groups: ParallelGroups, iteration: int | None = None
) -> TrainState:
    """Restore only the weights, for evaluation and generation; all ranks call it together.

    Args:
        path: checkpoint folder of a run, or one ``iter_`` folder.
        module: the model without wrappers, on any layout.
        groups: the layout.
        iteration: which one; None means the newest.
    Raises:
        CheckpointError: it does not exist, or its tensors are not those of this model.
    """
    folder = resolve_checkpoint(path, iteration=iteration)
    content = {"model": module.sharded_state_dict(metadata=content_of(folder))}
    loaded, missing, unexpected = read_sharded(content, folder, groups.dp_cp)
    _check_names(folder, missing=missing, unexpected=of_the_model(unexpected))
    module.load_state_dict(loaded["model"])
    return read_train_state(folder)


def content_of(folder: Path) -> dict[str, Any]:
    """Return the kind of state dict that a checkpoint was written from.

    Raises:
        CheckpointError: it does not say.
    """
    content = read_common(folder).get("content_metadata")
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder} must be saved by this program, but does not say what it contains")
    return dict(content)


def read_sharded(
    content: dict[str, Any], folder: Path, group: ProcessGroup
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Read the values for a sharded state dict; all ranks call it together.

    Args:
        content: sharded state dict.
        folder: ``iter_`` folder.
        group: ranks that hold the same weights: what several of them ask for is read by one and sent to the
            others.
    Returns:
        The values; the names that are missing in the checkpoint; the names that are unexpected in it.
    Raises:
        CheckpointError: a file cannot be read, or a shape differs.
    """
    from megatron.core.dist_checkpointing.core import CheckpointingException

    from pipeline.checkpoint.guarded_reading import load_guarded

    check_format(folder)
    try:
        loaded, not_asked_for, not_there = load_guarded(content, folder, group)
    except CheckpointException as error:
        # Its text repeats the traceback of every rank.
        reasons = sorted({str(failure) for failure, _ in error.failures.values()})
        raise CheckpointError(_unreadable(folder, "; ".join(reasons))) from error
    except CheckpointingException as error:
        raise CheckpointError(_unreadable(folder, str(error))) from error
    return loaded, names_on_all_ranks(not_there), sorted(not_asked_for)


def check_format(folder: Path) -> None:
    """Check that a checkpoint has the format in which this program saves.

    Raises:
        CheckpointError: it has another one, or none.
    """
    path = folder / FORMAT_NAME
    try:
        found = read_json_object(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); use another checkpoint") from error
    if found != FORMAT:
        raise CheckpointError(
            f"{path} must describe the format {FORMAT['sharded_backend']}, but describes {str(found)[:80]}; "
            "use a checkpoint of this program"
        )


def without_prefixes(names: list[str], *prefixes: str) -> list[str]:
    """Return the names that start with none of the prefixes."""
    return [name for name in names if not name.startswith(prefixes)]


def of_the_model(names: list[str]) -> list[str]:
    """Return the names of weights, without those of generators and of the optimizer."""
    return without_prefixes(names, GENERATORS_KEY, *OPTIMIZER_PREFIXES)


def _unreadable(folder: Path, reason: str) -> str:
    return f"{folder} cannot be read: {reason}; use the model settings in {folder / CONFIG_NAME}"


def _check_has_optimizer(folder: Path, state: TrainState) -> None:
    if state.averaged_iterations:
        raise CheckpointError(
            f"{folder} must hold an optimizer's state to resume from, but holds the mean of the weights of "
            "several iterations; start a new run from it with init_from.path"
        )


def _check_names(folder: Path, *, missing: list[str], unexpected: list[str]) -> None:
    if not missing and not unexpected:
        return
    parts = [
        f"{len(names)} {what}: {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}"
        for what, names in (("missing in it", missing), ("unexpected in it", unexpected))
        if names
    ]
    raise CheckpointError(
        f"{folder} must hold exactly the tensors of this model and optimizer, but {'; '.join(parts)}; "
        f"use the model and optimizer settings in {folder / CONFIG_NAME}"
    )
