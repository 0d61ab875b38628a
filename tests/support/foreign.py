"""Checkpoints as somebody else might have made them: with code in their pickles, and with false sizes."""

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from pipeline.checkpoint.checksums import CHECKSUMS_NAME, write_checksums

OBJECT = "decoder.layers.self_attention.linear_qkv._extra_state/shard_0_1"
GENERATORS = "rng_state/shard_0_1"
EMBEDDING = "embedding.word_embeddings.weight"


class Bomb:
    """Makes a folder when it is unpickled by a reader that runs what a pickle names."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def saved(content: Any, *, is_old: bool = False) -> bytes:
    """Return what torch.save writes."""
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not is_old)
    return stream.getvalue()


def in_metadata(folder: Path, bomb: Bomb) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(bomb))


def in_unused_part_of_metadata(folder: Path, bomb: Bomb) -> None:
    change_metadata(folder, lambda metadata: setattr(metadata, "planner_data", bomb))


def in_name_of_tensor(folder: Path, bomb: Bomb) -> None:
    change_metadata(folder, lambda metadata: metadata.state_dict_metadata.update({bomb: None}))


def in_object(folder: Path, bomb: Bomb) -> None:
    replace_stored(folder, MetadataIndex(OBJECT), saved(bomb))


def in_old_object(folder: Path, bomb: Bomb) -> None:
    replace_stored(folder, MetadataIndex(OBJECT), saved([bomb], is_old=True))


def in_generators(folder: Path, bomb: Bomb) -> None:
    replace_stored(folder, MetadataIndex(GENERATORS), saved({"python": bomb}))


def in_tensor(folder: Path, bomb: Bomb) -> None:
    replace_stored(folder, MetadataIndex(EMBEDDING, torch.Size([0, 0])), saved(bomb))


def in_common(folder: Path, bomb: Bomb) -> None:
    (folder / "common.pt").write_bytes(saved({"content_metadata": bomb}))


PLACES = (
    in_metadata,
    in_unused_part_of_metadata,
    in_name_of_tensor,
    in_object,
    in_old_object,
    in_generators,
    in_tensor,
    in_common,
)


def planted(source: Path, directory: Path, plant: Callable[[Path, Bomb], None], mark: Path) -> Path:
    """Return a copy of a checkpoint, with a bomb and checksums that agree with it."""
    folder = directory / source.name
    shutil.copytree(source, folder)
    plant(folder, Bomb(mark))
    (directory / "latest_checkpointed_iteration.txt").write_text(str(int(source.name[5:])))
    refresh_checksums(folder)
    return folder


def refresh_checksums(folder: Path) -> None:
    (folder / CHECKSUMS_NAME).unlink(missing_ok=True)
    write_checksums(folder)


def change_metadata(folder: Path, change: Callable[[Metadata], object]) -> None:
    metadata = FileSystemReader(folder).read_metadata()
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def replace_stored(folder: Path, index: MetadataIndex, content: bytes) -> None:
    """Store other bytes for a tensor or an object."""

    def move(metadata: Metadata) -> None:
        place = metadata.storage_data[index]
        with (folder / place.relative_path).open("ab") as stream:
            place.offset, place.length = stream.tell(), len(content)
            stream.write(content)

    change_metadata(folder, move)
