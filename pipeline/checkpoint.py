"""Save and load a run with Megatron's ``dist_checkpointing``: weights, optimizer, schedule, generators.

Format ``torch_dist`` with the optimizer "fully reshardable": its state is stored by the model's tensors, so a
checkpoint loads onto any tensor-, pipeline- and data-parallel layout. Which folder is which is told in
:mod:`pipeline.checkpoint_folder`.
"""

import logging
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict

from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups
from pipeline.checkpoint_folder import (
    CONFIG_NAME,
    CheckpointError,
    TrainState,
    latest_iteration,
    publish,
    read_train_state,
    remove_old_checkpoints,
    resolve_checkpoint,
    start_partial_checkpoint,
    write_train_state,
)

__all__ = [
    "CheckpointError",
    "TrainState",
    "latest_iteration",
    "load_checkpoint",
    "load_weights",
    "resolve_checkpoint",
    "save_checkpoint",
]

logger = logging.getLogger(__name__)

# Read back by Megatron from the checkpoint itself, so that a reader builds the same kind of state dict.
_CONTENT: dict[str, Any] = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
    "singleton_local_shards": False,
}
# What config says, not the checkpoint: a resumed run may change these.
_GROUP_SETTINGS = ("max_lr", "min_lr", "betas", "eps")
_LAYOUT_KEY = "layout"
_GENERATORS_KEY = "rng_state"
_OPTIMIZER_PREFIXES = ("optimizer.", "chained_")


def save_checkpoint(
    directory: Path,
    state: TrainState,
    *,
    module: Any,
    optimizer: Any,
    scheduler: Any,
    groups: ParallelGroups,
    config_file: Path,
    keep_last: int | None = None,
) -> Path:
    """Save a run; all ranks call it together, and it returns when the checkpoint is on disk.

    Args:
        directory: the run's checkpoint folder, shared by all ranks.
        state: how far the run is; names the folder.
        module: the model without wrappers (``sharded_state_dict``).
        optimizer: from ``build_optimizer``.
        scheduler: from ``build_scheduler``.
        groups: the run's layout.
        config_file: the resolved config, copied beside the weights.
        keep_last: finished checkpoints to keep; None keeps all.

    Returns:
        The checkpoint's folder.
    """
    from megatron.core import dist_checkpointing

    partial = _on_rank_zero(groups, lambda: start_partial_checkpoint(directory, state.iteration))
    _fill_missing_moments(optimizer)
    content = _sharded_state(module, optimizer, groups, metadata=dict(_CONTENT), is_loading=False)
    content["opt_param_scheduler"] = scheduler.state_dict()
    dist_checkpointing.save(
        content,
        str(partial),
        sharded_strategy=_in_process_save_strategy(),
        content_metadata={**_CONTENT, _LAYOUT_KEY: _layout(groups)},
    )

    def finish() -> Path:
        shutil.copyfile(config_file, partial / CONFIG_NAME)
        write_train_state(partial, state)
        folder = publish(partial)
        if keep_last is not None:
            remove_old_checkpoints(directory, keep_last=keep_last)
        return folder

    return _on_rank_zero(groups, finish)


def load_checkpoint(
    path: Path,
    *,
    module: Any,
    optimizer: Any,
    scheduler: Any,
    groups: ParallelGroups,
    iteration: int | None = None,
) -> TrainState:
    """Restore a run, on the layout it was saved with or on another one; all ranks call it together.

    On the same layout the random generators are restored too; on another they keep their seeds. Learning
    rates, betas and lengths of the schedule stay those of the config; its position is restored.

    Args:
        path: checkpoint folder of a run, or one ``iter_`` folder.
        module: the model without wrappers, built as for the saved run.
        optimizer: from ``build_optimizer``.
        scheduler: from ``build_scheduler``, not yet stepped.
        groups: the layout to load onto.
        iteration: which one; None takes the newest.

    Raises:
        CheckpointError: there is none, or its tensors are not those of this model and optimizer.
    """
    folder = resolve_checkpoint(path, iteration=iteration)
    metadata = _content_of(folder)
    has_same_layout = metadata.pop(_LAYOUT_KEY, None) == _layout(groups)
    content = _sharded_state(
        module, optimizer, groups if has_same_layout else None, metadata=metadata, is_loading=True
    )
    settings = [{name: group[name] for name in _GROUP_SETTINGS} for group in optimizer.param_groups]
    loaded = _load(content, folder, ignored_prefixes=(_GENERATORS_KEY,))
    module.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    for group, own_settings in zip(optimizer.param_groups, settings, strict=True):
        group.update(own_settings)
    scheduler.load_state_dict(loaded["opt_param_scheduler"])
    if has_same_layout:
        _restore_generators(loaded[_GENERATORS_KEY])
    return read_train_state(folder)


def load_weights(path: Path, *, module: Any, iteration: int | None = None) -> TrainState:
    """Restore the weights alone, for evaluation and generation; all ranks call it together.

    Args:
        path: checkpoint folder of a run, or one ``iter_`` folder.
        module: the model without wrappers, on any layout.
        iteration: which one; None takes the newest.

    Raises:
        CheckpointError: there is none, or its tensors are not those of this model.
    """
    folder = resolve_checkpoint(path, iteration=iteration)
    content = {"model": module.sharded_state_dict(metadata=_content_of(folder))}
    loaded = _load(content, folder, ignored_prefixes=(_GENERATORS_KEY, *_OPTIMIZER_PREFIXES))
    module.load_state_dict(loaded["model"])
    return read_train_state(folder)


def _sharded_state(
    module: Any, optimizer: Any, groups: ParallelGroups | None, *, metadata: dict[str, Any], is_loading: bool
) -> dict[str, Any]:
    model_state = module.sharded_state_dict(metadata=metadata)
    content = {
        "model": model_state,
        "optimizer": optimizer.sharded_state_dict(model_state, is_loading=is_loading, metadata=metadata),
    }
    if groups is not None:
        content[_GENERATORS_KEY] = _sharded_generators(groups)
    return content


def _load(content: dict[str, Any], folder: Path, *, ignored_prefixes: tuple[str, ...]) -> dict[str, Any]:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CheckpointingException
    from megatron.core.dist_checkpointing.validation import StrictHandling

    try:
        loaded, not_asked_for, not_there = dist_checkpointing.load(
            content, str(folder), strict=StrictHandling.RETURN_ALL
        )
    except CheckpointException as error:
        # Its own text repeats every rank's traceback.
        reasons = sorted({str(failure) for failure, _ in error.failures.values()})
        raise CheckpointError(_unreadable(folder, "; ".join(reasons))) from error
    except CheckpointingException as error:
        raise CheckpointError(_unreadable(folder, str(error))) from error
    _refuse_differences(
        folder,
        missing=_names_on_all_ranks(not_there),
        unexpected=[name for name in sorted(not_asked_for) if not name.startswith(ignored_prefixes)],
    )
    state: dict[str, Any] = loaded
    return state


def _unreadable(folder: Path, reason: str) -> str:
    return f"{folder} cannot be read: {reason}; use the model settings in {folder / CONFIG_NAME}"


def _refuse_differences(folder: Path, *, missing: list[str], unexpected: list[str]) -> None:
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


def _names_on_all_ranks(names: Iterable[str]) -> list[str]:
    """Gather names, so that every rank refuses, and for the same reason."""
    gathered: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, sorted(names))
    return sorted({name for of_rank in gathered for name in of_rank})


def _on_rank_zero(groups: ParallelGroups, action: Any) -> Path:
    """Let rank 0 act and tell all ranks its result, or its error."""
    outcome: list[Any] = [None]
    if groups.rank == 0:
        try:
            outcome = [action()]
        except OSError as error:
            outcome = [error]
    torch.distributed.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], OSError):
        raise CheckpointError(f"rank 0 could not write the checkpoint: {outcome[0]}") from outcome[0]
    path: Path = outcome[0]
    return path


def _content_of(folder: Path) -> dict[str, Any]:
    from megatron.core import dist_checkpointing

    content = dist_checkpointing.load_content_metadata(str(folder))
    if content is None:
        raise CheckpointError(f"{folder} must be saved by this program, but does not say what it contains")
    return dict(content)


def _fill_missing_moments(optimizer: Any) -> None:
    """Give parameters that were never updated their zero moments: a checkpoint holds them for all."""
    for part in optimizer.chained_optimizers:
        if part.init_state_fn is not None:
            part.init_state_fn(part.optimizer, part.config)


def _sharded_generators(groups: ParallelGroups) -> Any:
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    return ShardedObject(_GENERATORS_KEY, _generators(), (groups.world_size,), (groups.rank,))


def _layout(groups: ParallelGroups) -> dict[str, int]:
    return {"tensor": groups.tp_size, "pipeline": groups.pp_size, "data": groups.dp_size}


def _generators() -> dict[str, Any]:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(),
        "model_parallel": get_cuda_rng_tracker().get_states(),
    }


def _restore_generators(states: dict[str, Any]) -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state(states["cuda"])
    get_cuda_rng_tracker().set_states(states["model_parallel"])


def _in_process_save_strategy() -> Any:
    """Build a ``torch_dist`` writer that writes from this process.

    Megatron's own spawns a manager and forks a writer for every save, which takes seconds and can outlive a
    killed rank. The files are the same.
    """
    prepare_host()
    from megatron.core.dist_checkpointing.strategies.base import SaveShardedStrategy
    from megatron.core.dist_checkpointing.strategies.torch import (
        MCoreSavePlanner,
        _replace_state_dict_keys_with_sharded_keys,
        mcore_to_pyt_state_dict,
    )

    class InProcessSave(SaveShardedStrategy):  # type: ignore[misc]  # Megatron carries no types
        can_handle_sharded_objects = True

        def save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> None:
            tensors, _, _ = _replace_state_dict_keys_with_sharded_keys(
                sharded_state_dict, keep_only_main_replica=True
            )
            save_state_dict(
                mcore_to_pyt_state_dict(tensors),
                storage_writer=FileSystemWriter(checkpoint_dir),
                planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
            )

    return InProcessSave("torch_dist", 1)
