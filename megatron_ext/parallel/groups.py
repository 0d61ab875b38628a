"""The parallel layout of a run: sizes, this rank's coordinates, and Megatron's process groups."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch.distributed
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch.distributed import ProcessGroup

from megatron_ext.device import device_backend
from megatron_ext.host import prepare_host

__all__ = ["ParallelGroups", "destroy_groups", "initialize_groups"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelGroups:
    """Sizes, coordinates and process groups of this rank.

    Neighbouring ranks share the tensor axis, then the context, the data and the pipeline axis.
    """

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    cp_rank: int
    cp_size: int
    dp_rank: int
    dp_size: int
    pp_rank: int
    pp_size: int
    pg_collection: ProcessGroupCollection
    tp: ProcessGroup
    """Ranks that share the layers' weights."""
    cp: ProcessGroup
    """Ranks that hold the same weights and share the tokens of each row."""
    dp: ProcessGroup
    """Ranks that hold the same weights and read different samples."""
    dp_cp: ProcessGroup
    """Ranks that hold the same weights: data and context axes."""
    pp: ProcessGroup
    """Ranks that hold consecutive layers of one model."""
    mp: ProcessGroup
    """All ranks of one copy of the model: tensor and pipeline axes."""

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the head and computes the loss."""
        return self.pp_rank == self.pp_size - 1


def initialize_groups(
    *,
    tensor: int = 1,
    context: int = 1,
    pipeline: int = 1,
    seed: int = 1234,
    time_limit: timedelta | None = None,
) -> ParallelGroups:
    """Split the started process group into Megatron's axes and seed the model-parallel generators.

    The remaining factor of the world size is data parallel. The started group's timeout holds on all axes.

    Args:
        tensor: size of the tensor axis.
        context: size of the context axis.
        pipeline: size of the pipeline axis.
        seed: base seed; the tensor-parallel generators derive theirs from it.
        time_limit: how long a collective waits; None takes the limit of the started group.

    Raises:
        ValueError: the world size is not a multiple of ``tensor * context * pipeline``.
    """
    prepare_host()
    world_size = torch.distributed.get_world_size()
    model_ranks = tensor * context * pipeline
    if world_size % model_ranks != 0:
        raise ValueError(
            "the number of ranks must be a multiple of parallel.tensor * parallel.context * "
            f"parallel.pipeline ({tensor} * {context} * {pipeline}), but is {world_size}; "
            f"start {model_ranks} of them or a multiple"
        )
    with _groups_of_the_device():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            context_parallel_size=context,
            # Otherwise a collective within the layout waits for half an hour.
            distributed_timeout_minutes=(time_limit or _time_limit()) / timedelta(minutes=1),
            # Only Megatron's own gathering of the optimizer's state needs them; checkpoints are written from
            # what each rank holds.
            create_gloo_process_groups=False,
        )
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    pg_collection = ProcessGroupCollection.use_mpu_process_groups()
    return ParallelGroups(
        rank=torch.distributed.get_rank(),
        world_size=world_size,
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=tensor,
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=context,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=pipeline,
        pg_collection=pg_collection,
        tp=pg_collection.tp,
        cp=pg_collection.cp,
        dp=pg_collection.dp,
        dp_cp=pg_collection.dp_cp,
        pp=pg_collection.pp,
        mp=pg_collection.mp,
    )


@contextmanager
def _groups_of_the_device() -> Iterator[None]:
    """Let Megatron make groups for tensors of the device alone: those of the host go over all ranks."""
    create_group = parallel_state.create_group
    parallel_state.create_group = partial(create_group, backend=device_backend())
    try:
        yield
    finally:
        parallel_state.create_group = create_group


def _time_limit() -> timedelta:
    """Return how long a collective of the started process group waits."""
    everyone = torch.distributed.group.WORLD
    assert everyone is not None, "a process group must be started first"
    limit: timedelta = everyone._get_backend(torch.device("cpu")).options._timeout
    return limit


def destroy_groups() -> None:
    """Destroy the groups of the layout, so that another can be built on the same process group."""
    if not parallel_state.model_parallel_is_initialized():
        return
    # Megatron only forgets its groups; each would keep its connections and threads.
    for group in parallel_state._global_process_group_list:
        if group is not None:
            torch.distributed.destroy_process_group(group)
    parallel_state.destroy_model_parallel()
