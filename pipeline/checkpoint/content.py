"""What a checkpoint holds: the sharded state of model, optimizer and generators.

Format ``torch_dist`` with the optimizer "fully reshardable": its state is stored by the model's tensors, so a
checkpoint loads onto any tensor-, pipeline- and data-parallel layout.
"""

from typing import Any

from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.protocols import MegatronOptimizer, ShardedModule
from pipeline.checkpoint.generators import generator_states

LAYOUT_KEY = "layout"
GENERATORS_KEY = "rng_state"
OPTIMIZER_PREFIXES = ("optimizer.", "chained_")
# Read back by Megatron from the checkpoint itself, so that a reader builds the same kind of state dict.
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
    """Describe this rank's part of the state, as Megatron's ``dist_checkpointing`` takes it.

    Args:
        module: the model without wrappers.
        optimizer: from ``build_optimizer``.
        groups: the layout; None leaves the generators out.
        metadata: the kind of state dict, :data:`CONTENT` or what a checkpoint says.
        is_loading: whether values are to be filled in.
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
    """Return the sizes that must agree for generators to be restored."""
    return {"tensor": groups.tp_size, "pipeline": groups.pp_size, "data": groups.dp_size}


def fill_missing_moments(optimizer: MegatronOptimizer) -> None:
    """Give parameters that were never updated their zero moments: a checkpoint holds them for all."""
    for part in optimizer.chained_optimizers:
        if part.init_state_fn is not None:
            part.init_state_fn(part.optimizer, part.config)


def _sharded_generators(groups: ParallelGroups) -> Any:
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    return ShardedObject(GENERATORS_KEY, generator_states(), (groups.world_size,), (groups.rank,))
