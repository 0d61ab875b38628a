"""Speed of the training reader relative to a minimal reader and webdataset, on the same tokens."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import webdataset
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
from data_prep.storage.shard_format import TOKENS_FIELD
from data_prep.storage.shard_writer import ShardWriter
from pipeline.data.batches import BatchLayout, PackingOptions, TrainingBatches
from pipeline.data.dataset import TokenDataset, open_dataset
from pipeline.data.order import SampleOrder

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
    """Sizes of the data.

    Attributes:
        num_rows: total number of rows.
        seq_length: tokens of a row, without the last one, which is only a label.
        rows_per_step: rows that a rank reads for one step.
    """

    num_rows: int
    seq_length: int
    rows_per_step: int

    @property
    def num_steps(self) -> int:
        """Number of complete steps."""
        return self.num_rows // self.rows_per_step

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all steps."""
        return self.num_steps * self.rows_per_step * self.seq_length


def time_reading(sizes: ReadingSizes, folder: Path, *, repeats: int) -> dict[str, float]:
    """Time several readers of the same tokens, in turns.

    Args:
        sizes: at least one step.
        folder: where the files are written.
        repeats: timed rounds, after one untimed round.
    Returns:
        median tokens per second of processor time of all threads, by reader.
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
    """Copy each row into an int64 tensor, in the order of training."""
    for step in range(sizes.num_steps):
        for index in order.indices(step * sizes.rows_per_step, sizes.rows_per_step).tolist():
            start = index * sizes.seq_length
            torch.from_numpy(raw[start : start + sizes.seq_length + 1].astype(np.int64))


def _read_rows(dataset: TokenDataset, order: SampleOrder, sizes: ReadingSizes) -> None:
    for step in range(sizes.num_steps):
        indices = order.indices(step * sizes.rows_per_step, sizes.rows_per_step)
        torch.from_numpy(dataset.rows(indices.tolist()).tokens.astype(np.int64))


def _read_packed(dataset: TokenDataset, order: SampleOrder, sizes: ReadingSizes) -> None:
    """Read tokens, labels, positions and documents as a training step does."""
    layout = BatchLayout(
        global_batch_size=sizes.rows_per_step, micro_batch_size=sizes.rows_per_step, dp_rank=0, dp_size=1
    )
    batches = TrainingBatches(dataset, order, layout=layout, packing=PackingOptions())
    for step in range(sizes.num_steps):
        batches.read(step * sizes.rows_per_step)


def read_webdataset(folder: Path, seq_length: int, num_tokens: int) -> int:
    """Read rows through webdataset's own pipeline, as a training without an index of its own would.

    Rows come in the order of the shards; the remainder of each sample is dropped.

    Returns:
        tokens of the rows, at most ``num_tokens``.
    """
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    samples = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode()
    num_read = 0
    for sample in samples:
        tokens: NDArray[np.integer] = sample[TOKENS_FIELD]
        for start in range(0, len(tokens) - seq_length, seq_length):
            if num_read >= num_tokens:
                return num_read
            torch.from_numpy(tokens[start : start + seq_length + 1].astype(np.int64))
            num_read += seq_length
    return num_read


def _processor_seconds(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median processor seconds of each reader, in which waiting for a core does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, read in ways.items():
            started = time.process_time()
            read()
            if turn > 0:
                seconds[name].append(time.process_time() - started)
    return {name: median(taken) for name, taken in seconds.items()}
