"""How fast training's reader is, beside the least that any reader does, on the same tokens."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.manifest import (
    InputEntry,
    InputRange,
    PreparationHeader,
    PrepareSettings,
    ShardEntry,
    ShardManifest,
    TokenizerEntry,
    save_manifest,
)
from data_prep.storage.shard_writer import ShardWriter
from pipeline.data.batches import BatchLayout, PackingOptions, TrainingBatches
from pipeline.data.dataset import TokenDataset, open_dataset
from pipeline.data.order import SampleOrder
from tests.bench.webdataset_reading import read_webdataset

READER = "megaponder, packed"
ROWS_READER = "megaponder, rows alone"
MEMMAP = "numpy memmap, row by row"
ROWS_IN_ORDER = "megaponder, rows alone, in order"
WEBDATASET = "webdataset, rows alone, in order"

_VOCAB_SIZE = 50_000
_EOD_ID = 0
_MEAN_DOCUMENT_TOKENS = 800
_NUM_SHARDS = 4
_RAW_NAME = "tokens.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingSizes:
    """What is read.

    Attributes:
        num_rows: rows in all.
        seq_length: tokens of a row, without the one that is only predicted.
        rows_per_step: rows that a rank reads for one step.
    """

    num_rows: int
    seq_length: int
    rows_per_step: int

    @property
    def num_steps(self) -> int:
        """Whole steps within the rows."""
        return self.num_rows // self.rows_per_step

    @property
    def num_tokens(self) -> int:
        """Tokens of all steps."""
        return self.num_steps * self.rows_per_step * self.seq_length


def time_reading(sizes: ReadingSizes, folder: Path, *, repeats: int) -> dict[str, float]:
    """Read the same tokens in several ways, in turns.

    Args:
        sizes: at least one step.
        folder: receives the files.
        repeats: timed rounds, after one that is not timed.
    Returns:
        by way, median tokens per second of a core: processor time counts, of all threads.
    """
    write_random_tokens(sizes, folder)
    dataset = open_dataset(folder, "train", seq_length=sizes.seq_length)
    order = SampleOrder(num_samples=len(dataset), seed=1, shuffled=True)
    in_order = SampleOrder(num_samples=len(dataset), seed=1, shuffled=False)
    raw = np.memmap(folder / _RAW_NAME, dtype="<u2", mode="r")
    ways: dict[str, Callable[[], object]] = {
        MEMMAP: lambda: _read_memmap(raw, order, sizes),
        ROWS_READER: lambda: _read_rows(dataset, order, sizes),
        READER: lambda: _read_packed(dataset, order, sizes),
        ROWS_IN_ORDER: lambda: _read_rows(dataset, in_order, sizes),
        WEBDATASET: lambda: read_webdataset(folder, sizes.seq_length, sizes.num_tokens),
    }
    return {name: sizes.num_tokens / seconds for name, seconds in _processor_seconds(ways, repeats).items()}


def write_random_tokens(sizes: ReadingSizes, folder: Path) -> None:
    """Write documents of random tokens as shards, and the same tokens as one array."""
    generator = np.random.default_rng(1)
    entries = []
    per_shard = -(-(sizes.num_rows * sizes.seq_length + 1) // _NUM_SHARDS)
    with (folder / _RAW_NAME).open("wb") as raw:
        for number in range(_NUM_SHARDS):
            path = folder / f"train-{number:06d}.tar"
            settings = PrepareSettings()
            with ShardWriter(
                path, token_type="uint16", eod_id=_EOD_ID, member_tokens=settings.member_tokens
            ) as writer:
                num_tokens = 0
                while num_tokens < per_shard:
                    document = _document(generator)
                    writer.add_document(document)
                    raw.write(np.append(document, _EOD_ID).astype("<u2").tobytes())
                    num_tokens += len(document) + 1
                written = writer.finish()
            entries.append(
                ShardEntry(
                    name=path.name,
                    split="train",
                    size_bytes=written.size_bytes,
                    sha256=written.sha256,
                    num_tokens=written.num_tokens,
                    num_documents=written.num_documents,
                    num_members=written.num_members,
                    tokenizer_sha256="none",
                    inputs=InputRange(
                        first_file="none", last_file="none", num_files=1, num_bytes=0, fingerprint="none"
                    ),
                )
            )
    save_manifest(ShardManifest(header=_header(), shards=tuple(entries)), folder)


def _document(generator: np.random.Generator) -> NDArray[np.int64]:
    length = 1 + int(generator.exponential(_MEAN_DOCUMENT_TOKENS))
    return generator.integers(1, _VOCAB_SIZE, size=length)


def _header() -> PreparationHeader:
    return PreparationHeader(
        token_type="uint16",
        tokenizer=TokenizerEntry(file="none", sha256="none", vocab_size=_VOCAB_SIZE, eod_id=_EOD_ID),
        settings=PrepareSettings(),
        inputs=InputEntry(source="random", num_files=1, num_bytes=0, fingerprint="none"),
    )


def _read_memmap(raw: NDArray[np.uint16], order: SampleOrder, sizes: ReadingSizes) -> None:
    """Copy each row into a tensor of the model's type, in training's order."""
    for step in range(sizes.num_steps):
        for index in order.indices(step * sizes.rows_per_step, sizes.rows_per_step).tolist():
            start = index * sizes.seq_length
            torch.from_numpy(raw[start : start + sizes.seq_length + 1].astype(np.int64))


def _read_rows(dataset: TokenDataset, order: SampleOrder, sizes: ReadingSizes) -> None:
    for step in range(sizes.num_steps):
        indices = order.indices(step * sizes.rows_per_step, sizes.rows_per_step)
        torch.from_numpy(dataset.rows(indices.tolist()).tokens.astype(np.int64))


def _read_packed(dataset: TokenDataset, order: SampleOrder, sizes: ReadingSizes) -> None:
    """Tokens, labels, positions and documents, as a training step takes them."""
    layout = BatchLayout(
        global_batch_size=sizes.rows_per_step, micro_batch_size=sizes.rows_per_step, dp_rank=0, dp_size=1
    )
    batches = TrainingBatches(dataset, order, layout=layout, packing=PackingOptions())
    for step in range(sizes.num_steps):
        batches.read(step * sizes.rows_per_step)


def _processor_seconds(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median processor seconds of each way, taken in turns: waiting for the core is not the reader's."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, read in ways.items():
            started = time.process_time()
            read()
            if turn > 0:
                seconds[name].append(time.process_time() - started)
    return {name: median(taken) for name, taken in seconds.items()}
