"""Save a run in two halves: capture its state, then write it.

Capturing needs the model and its process groups. Writing needs neither: it may happen in another thread while
training continues, with a process group of its own.
"""

import io
import logging
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict

from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.protocols import MegatronOptimizer, ParameterScheduler, ShardedModule
from pipeline.checkpoint.agreement import on_all_ranks, on_rank_zero
from pipeline.checkpoint.checksums import FileDigest, digest_file
from pipeline.checkpoint.content import (
    CONTENT,
    LAYOUT_KEY,
    fill_missing_moments,
    layout_of,
    sharded_state,
)
from pipeline.checkpoint.folder import (
    COMMON_NAME,
    CONFIG_NAME,
    publish,
    remove_old_checkpoints,
    start_partial_checkpoint,
)
from pipeline.checkpoint.gathering import ScatteredState
from pipeline.checkpoint.identity import RunIdentity, write_identity
from pipeline.checkpoint.origin import now
from pipeline.checkpoint.state import TrainState, write_train_state
from pipeline.shared.errors import CheckpointError
from pipeline.shared.files import sync_folder
from pipeline.shared.units import render_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where checkpoints are written and how many are kept.

    Attributes:
        directory: the run's checkpoint folder, shared by all ranks.
        config_file: the resolved configuration, copied into each checkpoint.
        keep_last: number of finished checkpoints to keep; None keeps all.
        keep_every: also keep the iterations that are multiples of it.
        identity: what the checkpoints belong to; None leaves it out.
        tokenizer: content of the file of the run's tokenizer, if it has one.
    """

    directory: Path
    config_file: Path
    keep_last: int | None = None
    keep_every: int | None = None
    identity: RunIdentity | None = None
    tokenizer: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedSave:
    """This rank's part of a checkpoint, ready to be written.

    Attributes:
        state: progress of the run.
        tensors: in the form of torch's writer, by name.
        common: content of common.pt: what is the same on all ranks.
        num_bytes: size of this rank's tensors.
        host_bytes: host memory that the capture took on this rank.
    """

    state: TrainState
    tensors: dict[str, Any]
    common: bytes
    num_bytes: int
    host_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that is on disk."""

    folder: Path
    num_bytes: int
    seconds: float

    def __str__(self) -> str:
        speed = self.num_bytes / max(self.seconds, 1e-9)
        return (
            f"saved {self.folder}: {render_bytes(self.num_bytes)} written in {self.seconds:.2f} s, "
            f"{render_bytes(speed)}/s"
        )


def prepare_save(
    state: TrainState,
    *,
    module: ShardedModule,
    optimizer: MegatronOptimizer,
    scheduler: ParameterScheduler,
    groups: ParallelGroups,
    copies: bool,
) -> PreparedSave:
    """Capture the state of a run; all ranks call it together.

    Args:
        state: progress of the run; determines the name of the folder.
        module: the model without wrappers (``sharded_state_dict``).
        optimizer: from ``build_optimizer``.
        scheduler: Megatron's.
        groups: the parallel layout.
        copies: whether training continues before the state is written.
    """
    prepare_host()
    from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
    from megatron.core.dist_checkpointing.strategies.torch import (
        _replace_state_dict_keys_with_sharded_keys,
        mcore_to_pyt_state_dict,
    )

    fill_missing_moments(optimizer)
    scattered = ScatteredState(optimizer.chained_optimizers if _is_scattered(optimizer) else ())
    with scattered.hollow():
        content = sharded_state(module, optimizer, groups, metadata=dict(CONTENT), is_loading=False)
    content["opt_param_scheduler"] = scheduler.state_dict()
    content["content_metadata"] = {**CONTENT, LAYOUT_KEY: layout_of(groups)}
    sharded, common = save_preprocess(content, validate_access_integrity=True)
    _share_writing(sharded, groups)
    pieces, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
    own = list(_tensors_of(pieces))
    with_values = [piece for piece in own if not scattered.is_hollow(piece.data)]
    copied_bytes = _copy_to_host(with_values) if copies else 0
    gathered_bytes = scattered.fill(own)
    num_bytes = sum(piece.data.nbytes for piece in own)
    return PreparedSave(
        state=state,
        tensors=mcore_to_pyt_state_dict(pieces),
        common=_serialized(deepcopy(common)),
        num_bytes=num_bytes,
        host_bytes=gathered_bytes + copied_bytes,
    )


def write_save(prepared: PreparedSave, to: Destination, *, group: ProcessGroup | None = None) -> Saved:
    """Write a prepared checkpoint; all ranks of the group call it together.

    Returns when it is on disk under its final name. An error on any rank becomes an error on all, and leaves
    earlier checkpoints untouched.

    Raises:
        CheckpointError: it could not be written.
    """
    started = time.monotonic()
    try:
        partial = on_rank_zero(
            lambda: start_partial_checkpoint(to.directory, prepared.state.iteration), group=group
        )
        _write_tensors(partial, prepared, group)
        digests = on_all_ranks(lambda: _finish_own_files(partial, prepared, to, group), group=group)
        merged = {name: digest for of_rank in digests for name, digest in of_rank.items()}
        folder = on_rank_zero(lambda: _publish(partial, merged, prepared.state, to), group=group)
    except CheckpointError as error:
        raise CheckpointError(
            f"could not write the checkpoint of iteration {prepared.state.iteration}: {error}; "
            f"{_free_space(to.directory)}; earlier checkpoints are untouched"
        ) from error
    return Saved(
        folder=folder,
        num_bytes=sum(digest.bytes for digest in merged.values()),
        seconds=time.monotonic() - started,
    )


def _share_writing(sharded: Any, groups: ParallelGroups) -> None:
    """Divide the tensors that data- and context-parallel ranks have in common evenly, for writing."""
    from megatron.core.dist_checkpointing.exchange_utils import determine_main_replica_uniform_distribution
    from megatron.core.dist_checkpointing.strategies.fully_parallel import (
        distribute_main_replicas_with_precomputed_distribution,
    )

    shares = determine_main_replica_uniform_distribution(sharded, groups.dp_cp)
    distribute_main_replicas_with_precomputed_distribution(sharded, groups.dp_cp, shares)


def _is_scattered(optimizer: MegatronOptimizer) -> bool:
    """Tell whether data-parallel ranks share the optimizer's state."""
    return all(hasattr(part, "gbuf_ranges") for part in optimizer.chained_optimizers)


def _tensors_of(pieces: dict[str, list[Any]]) -> Iterator[Any]:
    return (piece for of_name in pieces.values() for piece in of_name if isinstance(piece.data, torch.Tensor))


def _copy_to_host(pieces: Sequence[Any]) -> int:
    """Replace tensors by copies that training does not change; return the size of the copies."""
    for piece in pieces:
        piece.data = piece.data.detach().to("cpu", copy=True)
    return sum(piece.data.nbytes for piece in pieces)


def _serialized(common: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(common, stream)
    return stream.getvalue()


def _write_tensors(partial: Path, prepared: PreparedSave, group: ProcessGroup | None) -> None:
    """Write the tensors in this process.

    Megatron's own writer spawns a manager and forks a process for every save, which takes seconds and may
    outlive a rank that is killed. The files are the same.
    """
    from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner

    try:
        save_state_dict(
            prepared.tensors,
            # No copies ahead of writing, which would open a CUDA context in the writing thread.
            storage_writer=FileSystemWriter(partial, per_thread_copy_ahead=0),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
            process_group=group,
        )
    except CheckpointException as error:
        # Its text repeats the traceback of every rank.
        reasons = [f"rank {rank}: {failure}" for rank, (failure, _) in sorted(error.failures.items())]
        # The frames refer to the error of this rank, whose own frames hold what was being written. The
        # garbage collector of Python 3.12.1 crashes on such a buffer of a BytesIO (python/cpython#111049).
        traceback.clear_frames(error.__traceback__)
        raise CheckpointError("; ".join(reasons)) from error


def _finish_own_files(
    partial: Path, prepared: PreparedSave, to: Destination, group: ProcessGroup | None
) -> dict[str, FileDigest]:
    """Write the small files on rank 0, and return the digests of the files that this rank has written."""
    rank = torch.distributed.get_rank(group)
    if rank != 0:
        names = [path.name for path in partial.glob(f"__{rank}_*")]
    else:
        _write_small_files(partial, prepared, to)
        others = [path.name for path in partial.iterdir() if not path.name.startswith("__")]
        names = [*others, *(path.name for path in partial.glob("__0_*"))]
    return {name: digest_file(partial / name, flushes=True) for name in names}


def _write_small_files(partial: Path, prepared: PreparedSave, to: Destination) -> None:
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config

    (partial / COMMON_NAME).write_bytes(prepared.common)
    save_config(CheckpointingConfig("torch_dist", 1), str(partial))
    shutil.copyfile(to.config_file, partial / CONFIG_NAME)
    write_train_state(partial, prepared.state)
    if to.identity is not None:
        write_identity(partial, replace(to.identity, saved_at=now()), to.tokenizer)
    sync_folder(partial)


def _publish(partial: Path, digests: dict[str, FileDigest], state: TrainState, to: Destination) -> Path:
    folder = publish(partial, digests)
    if to.keep_last is not None:
        remove_old_checkpoints(
            to.directory, newest=state.iteration, keep_last=to.keep_last, keep_every=to.keep_every
        )
    return folder


def _free_space(directory: Path) -> str:
    existing = next((path for path in (directory, *directory.parents) if path.is_dir()), Path("/"))
    usage = shutil.disk_usage(existing)
    return f"{render_bytes(usage.free)} are free in {existing}"
