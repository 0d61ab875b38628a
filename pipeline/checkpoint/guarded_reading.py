"""Megatron's loading of a sharded state dict, with every file read by :mod:`pipeline.checkpoint.unpickling`.

Its own loading unpickles ``common.pt``, ``.metadata`` and the objects in ``.distcp`` files without a limit on
what these may run.
"""

import io
import warnings
from itertools import groupby
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import merge
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factory_merges
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies import torch as megatron_torch
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.dist_checkpointing.utils import extract_sharded_base
from megatron.core.dist_checkpointing.validation import (
    StrictHandling,
    determine_global_metadata,
    validate_integrity_and_strict_load,
)
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load_state_dict
from torch.futures import Future

from pipeline.checkpoint.offline import Chunk, as_chunk
from pipeline.checkpoint.unpickling import check_files, load_object, load_tensor, read_common, read_metadata
from pipeline.shared.errors import CheckpointError


def load_guarded(
    content: dict[str, Any], folder: Path, group: ProcessGroup
) -> tuple[dict[str, Any], set[str], set[str]]:
    """Do what Megatron's ``dist_checkpointing.load`` does; all ranks call it together.

    Args:
        content: sharded state dict; holds no tensors of its own afterwards.
        folder: ``iter_`` folder.
        group: ranks whose parts of the content are mostly the same: each reads a share for all of them.
    Returns:
        The values; names in the checkpoint that no rank asks for; names that this rank does not find in it.
    Raises:
        CheckpointingException, CheckpointException: a file cannot be read, or a shape differs.
    """
    strategy = GuardedShardedStrategy()
    values = read_common(folder)
    sharded, local, factories = load_preprocess(content)
    merge(values, local)
    sharded, _ = extract_sharded_base(sharded)
    sharded, not_asked_for, not_there = validate_integrity_and_strict_load(
        sharded,
        StrictHandling.RETURN_ALL,
        True,
        *determine_global_metadata(sharded),
        strategy.load_sharded_metadata(folder),
    )
    merge(values, FullyParallelLoadStrategyWrapper(strategy, group).load(sharded, folder))
    apply_factory_merges(values, factories)
    return values, not_asked_for, not_there


class GuardedShardedStrategy(megatron_torch.TorchDistLoadShardedStrategy):  # type: ignore[misc]
    """Reads tensors and objects."""

    def load(self, sharded_state_dict: Any, checkpoint_dir: str | Path, *_: Any) -> Any:
        """Return the values for a sharded state dict; all ranks call it together.

        Newer releases of Megatron name the writer of the checkpoint too, which decides nothing here.
        """
        pieces, flat_mapping, renamed = megatron_torch._replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict
        )
        tensors = megatron_torch.mcore_to_pyt_state_dict(pieces, True)
        shapes = [
            piece
            for of_name in pieces.values()
            for piece in of_name
            if isinstance(piece, ShardedTensor) and not piece.allow_shape_mismatch
        ]
        free = {
            piece.key: piece
            for of_name in pieces.values()
            for piece in of_name
            if isinstance(piece, ShardedTensor) and piece.allow_shape_mismatch
        }
        with warnings.catch_warnings():
            # Megatron calls it too; its successor expects modules with states of their own.
            warnings.simplefilter("ignore", FutureWarning)
            load_state_dict(
                tensors,
                GuardedReader(Path(checkpoint_dir)),
                planner=GuardedPlanner(
                    shapes_validation_sharded_tensors=shapes, allow_shape_mismatch_sharded_tensors=free
                ),
            )
        values = {name: megatron_torch._unwrap_pyt_sharded_tensor(value) for name, value in tensors.items()}
        loaded = megatron_torch._replace_sharded_keys_with_state_dict_keys(values, flat_mapping, renamed)
        megatron_torch._restore_dict_types(loaded, sharded_state_dict)
        return loaded

    def load_tensors_metadata(
        self, checkpoint_dir: str | Path, metadata: Metadata | None = None
    ) -> dict[str, Any]:
        """Return the tensors in a checkpoint, without their values."""
        return super().load_tensors_metadata(  # type: ignore[no-any-return]
            checkpoint_dir, read_metadata(Path(checkpoint_dir)) if metadata is None else metadata
        )

    def load_sharded_metadata(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        """Return the tensors and objects in a checkpoint, without their values."""
        metadata = read_metadata(Path(checkpoint_dir))
        # Here, because torch logs the errors of its own reading with their tracebacks.
        check_files(Path(checkpoint_dir), metadata)
        found = {}
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                one = _sharded_object(name, checkpoint_dir)
                found[one.unique_key] = one
        return found | self.load_tensors_metadata(checkpoint_dir, metadata)


class GuardedPlanner(megatron_torch.MCoreLoadPlanner):  # type: ignore[misc]
    """Puts objects in their places."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Set an object from how it was written."""
        name = read_item.dest_index.fqn
        loaded = load_object(value.getvalue(), place=name)
        set_element(self.original_state_dict, self.mappings[name], loaded)


class GuardedReader(FileSystemReader):
    """Reads the files of a checkpoint.

    Args:
        path: ``iter_`` folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._folder = path
        self._metadata: Metadata | None = None
        self._chunks: dict[Any, Chunk] = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what the checkpoint holds; torch's fallback to a file for each rank finds the same."""
        if self._metadata is None:
            metadata = read_metadata(self._folder)
            check_files(self._folder, metadata)
            self._metadata = metadata
            self._chunks = {
                (name, chunk.offsets): chunk
                for name, entry in metadata.state_dict_metadata.items()
                if isinstance(entry, TensorStorageMetadata)
                for chunk in entry.chunks
            }
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the items of this rank, in the order in which they are stored."""
        items = sorted(plan.items, key=lambda item: self._file_and_offset(item))
        for name, in_file in groupby(items, key=lambda item: self._file_and_offset(item)[0]):
            with (self._folder / name).open("rb") as stream:
                for item in in_file:
                    place = self.storage_data[item.storage_index]
                    stream.seek(place.offset)
                    self._give(item, stream.read(place.length), planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _file_and_offset(self, item: ReadItem) -> tuple[str, int]:
        place = self.storage_data[item.storage_index]
        return place.relative_path, place.offset

    def _give(self, item: ReadItem, content: bytes, planner: LoadPlanner) -> None:
        if item.type == LoadItemType.BYTE_IO:
            planner.load_bytes(item, io.BytesIO(content))
            return
        index = item.storage_index
        stored = load_tensor(content, place=f"{index.fqn} in {self._folder}")
        chunk = self._chunks[index.fqn, index.offset]
        part = tuple(
            slice(start, start + length)
            for start, length in zip(item.storage_offsets, item.lengths, strict=True)
        )
        values = as_chunk(stored, chunk, place=index.fqn)[part]
        target = planner.resolve_tensor(item).detach()
        target.copy_(values.reshape(target.shape))
        planner.commit_tensor(item, target)


def _sharded_object(name: str, checkpoint_dir: str | Path) -> Any:
    try:
        return ShardedObject.empty_from_unique_key(name)
    except (ValueError, AssertionError) as error:
        raise CheckpointError(
            f"{checkpoint_dir} must hold objects with their number in their name, but holds {name[:80]!r}; "
            "use another checkpoint"
        ) from error
