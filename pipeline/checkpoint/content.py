"""The sharded state in a checkpoint: model, optimizer and random generators.

Format ``torch_dist`` with the optimizer "fully reshardable": its state is stored by the model's tensors, so a
checkpoint loads onto any tensor-, context-, pipeline- and data-parallel layout.
"""

import random
from typing import Any

import numpy as np
import torch

from megatron_ext.device import generator_state, set_generator_state
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.protocols import MegatronOptimizer, ShardedModule
from pipeline.shared.errors import CheckpointError

LAYOUT_KEY = "layout"
GENERATORS_KEY = "rng_state"
OPTIMIZER_PREFIXES = ("optimizer.", "chained_")
# The kind of state dict. Megatron stores it in the checkpoint, so that a reader builds the same kind.
CONTENT: dict[str, Any] = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
    "singleton_local_shards": False,
}


def sharded_state(
    module: ShardedModule,
    optimizer: MegatronOptimizer,
    groups: ParallelGroups | None,
    *,
    metadata: dict[str, Any],
    is_loading: bool,
) -> dict[str, Any]:
    """Return this rank's part of the state, as Megatron's ``dist_checkpointing`` expects it.

    Args:
        module: the model without wrappers.
        optimizer: from ``build_optimizer``.
        groups: the parallel layout; None omits the generators.
        metadata: the kind of state dict: :data:`CONTENT`, or what is stored in a checkpoint.
        is_loading: whether values will be filled in from a checkpoint.
    """
    model_state = module.sharded_state_dict(metadata=metadata)
    content = {
        "model": model_state,
        "optimizer": optimizer.sharded_state_dict(model_state, is_loading=is_loading, metadata=metadata),
    }
    if groups is not None:
        content[GENERATORS_KEY] = _sharded_generators(groups)
    return content


def layout_of(groups: ParallelGroups) -> dict[str, int]:
    """Return the parallel sizes; generators are restored only where they agree."""
    sizes = {"tensor": groups.tp_size, "pipeline": groups.pp_size, "data": groups.dp_size}
    # Checkpoints of layouts without the axis do not name it.
    return sizes | ({"context": groups.cp_size} if groups.cp_size > 1 else {})


def fill_missing_moments(optimizer: MegatronOptimizer) -> None:
    """Create the zero moments of parameters that were never updated: a checkpoint has those of all."""
    for part in optimizer.chained_optimizers:
        if part.init_state_fn is not None:
            part.init_state_fn(part.optimizer, part.config)


def _sharded_generators(groups: ParallelGroups) -> Any:
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    return ShardedObject(GENERATORS_KEY, generator_states(), (groups.world_size,), (groups.rank,))


def generator_states() -> dict[str, Any]:
    """Return the state of every random generator of this rank."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": generator_state(),
        "model_parallel": get_cuda_rng_tracker().get_states(),
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Restore the state of every random generator of this rank.

    Raises:
        CheckpointError: these are no such states.
    """
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    try:
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.set_rng_state(states["torch"])
        set_generator_state(states["cuda"])
        get_cuda_rng_tracker().set_states(states["model_parallel"])
    # Generators raise errors of many types for states that are not theirs.
    except Exception as error:
        raise CheckpointError(
            f"a checkpoint must hold the states of random generators, but its own cannot be set ({error}); "
            "use another checkpoint"
        ) from error
