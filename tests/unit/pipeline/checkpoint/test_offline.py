import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, load

from pipeline.checkpoint.offline import Chunk, OfflineReader, OfflineWriter
from pipeline.shared.errors import CheckpointError

VALUES = torch.arange(40, dtype=torch.float32).reshape(5, 8)
# Rows 0 to 1 and 2 to 4, columns 0 to 2 and 3 to 7.
CHUNKS = [
    Chunk(offsets=torch.Size([row, column]), sizes=torch.Size([height, width]))
    for row, height in ((0, 2), (2, 3))
    for column, width in ((0, 3), (3, 5))
]


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def part(values: Tensor, chunk: Chunk) -> Tensor:
    row, column = chunk.offsets
    return values[row : row + chunk.sizes[0], column : column + chunk.sizes[1]]


def write(folder: Path, values: Tensor = VALUES, *, num_files: int = 1) -> OfflineReader:
    folder.mkdir(exist_ok=True)
    with OfflineWriter(folder, num_files=num_files, total_bytes=values.nbytes) as writer:
        for chunk in CHUNKS:
            writer.write_chunk("weight", part(values, chunk), chunk=chunk, size=values.size())
        scalar = Chunk(offsets=torch.Size([]), sizes=torch.Size([]))
        writer.write_chunk("scalar", torch.tensor(3.5), chunk=scalar, size=torch.Size([]))
        writer.write_bytes("generator", saved({"state": 1}))
    return OfflineReader(folder)


def test_what_is_written_is_read_completely_by_chunk_and_as_bytes(tmp_path: Path) -> None:
    reader = write(tmp_path)
    assert list(reader.tensors) == ["scalar", "weight"]
    assert torch.equal(reader.read("weight"), VALUES)
    assert reader.read("scalar") == 3.5
    assert torch.equal(reader.read_chunk("weight", CHUNKS[2]), VALUES[2:, :3])
    assert reader.objects == ["generator"]
    assert reader.read_bytes("generator") == saved({"state": 1})


@pytest.mark.parametrize("offsets", [(0, 0), (1, 2), (3, 6), (2, 3)])
def test_a_region_is_assembled_from_the_chunks_that_it_crosses(
    tmp_path: Path, offsets: tuple[int, int]
) -> None:
    region = Chunk(offsets=torch.Size(offsets), sizes=torch.Size([2, 2]))
    assert torch.equal(write(tmp_path).read("weight", region), part(VALUES, region))


@pytest.mark.parametrize("num_files", [1, 2, 4])
def test_torch_reads_it_from_any_number_of_files(tmp_path: Path, num_files: int) -> None:
    write(tmp_path, num_files=num_files)
    assert len(list(tmp_path.glob("*.distcp"))) == num_files
    values = {"weight": torch.zeros(5, 8), "scalar": torch.tensor(0.0)}
    load(values, storage_reader=FileSystemReader(tmp_path), no_dist=True)
    assert torch.equal(values["weight"], VALUES)
    assert values["scalar"] == 3.5


def test_a_chunk_is_stored_without_the_tensor_that_it_is_a_view_of(tmp_path: Path) -> None:
    whole = torch.zeros(1000, 1000)
    chunk = Chunk(offsets=torch.Size([0, 0]), sizes=torch.Size([2, 2]))
    with OfflineWriter(tmp_path) as writer:
        writer.write_chunk("corner", whole[:2, :2], chunk=chunk, size=torch.Size([2, 2]))
    assert (tmp_path / "__0_0.distcp").stat().st_size < 10_000


@pytest.mark.parametrize("content", [None, b"", b"no pickle"])
def test_without_its_description_a_checkpoint_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        _ = OfflineReader(tmp_path).tensors
