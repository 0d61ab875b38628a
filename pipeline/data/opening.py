"""Open the training and held-out samples that a run's data settings name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.manifest import TokenType
from pipeline.config.schema import DataConfig
from pipeline.data.blend import BlendedSource, BlendOrder
from pipeline.data.dataset import SampleSource, TokenDataset, Vocabulary, open_dataset
from pipeline.data.joined_dataset import JoinedDataset, parts_of
from pipeline.data.megatron_stream import find_pair, open_pair
from pipeline.data.order import Order, SampleOrder
from pipeline.data.row_stream import find_parts, open_parts

DataFormat = Literal["webdataset", "megatron", "rows"]

_DEFAULT_TOKEN_TYPE: TokenType = "uint16"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlace:
    """Where a split is stored, and how to read it.

    Attributes:
        path: folder, prefix of a pair, or part.
        split: name of the split.
        format: how the tokens are stored.
        stands_for_split: a path without splits may serve as the split.
        token_type: stored type of a token, for rows.
        vocabulary: for the formats that do not store it.
    """

    path: Path
    split: str
    format: DataFormat
    stands_for_split: bool
    token_type: TokenType
    vocabulary: Vocabulary | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The settings of the model that determine how to read: tokens per row, and ids if configured."""

    seq_length: int
    vocab_size: int | None


def open_training(data: DataConfig, reading: Reading) -> SampleSource:
    """Open the training split.

    Raises:
        DataError: it cannot be read.
    """
    parts = [
        _open(data, reading, path, data.train_split, kind=data.format, stands_for_split=True)
        for path in data.training_paths
    ]
    return _joined(data, parts)


def open_heldout(data: DataConfig, reading: Reading) -> SampleSource:
    """Open the held-out split, which is never the training data.

    Raises:
        DataError: it cannot be read, or is not separate from the training data.
    """
    paths, kind = data.training_paths, data.heldout_format
    if data.heldout_path is not None:
        apart = data.heldout_path not in paths
        return _open(data, reading, data.heldout_path, data.heldout_split, kind=kind, stands_for_split=apart)
    parts = [
        _open(data, reading, path, data.heldout_split, kind=kind, stands_for_split=False) for path in paths
    ]
    return _joined(data, parts)


def training_order(data: DataConfig, source: SampleSource, *, seed: int) -> Order:
    """Return the order in which to train on the samples of :func:`open_training`."""
    shuffled = data.order == "shuffled"
    if data.sources is None:
        return SampleOrder(num_samples=len(source), seed=seed, shuffled=shuffled)
    blended = [
        BlendedSource(name=each.name, num_samples=len(part), weight=each.weight, max_epochs=each.max_epochs)
        for each, part in zip(data.sources, parts_of(source), strict=True)
    ]
    return BlendOrder(blended, seed=seed, shuffled=shuffled)


def _joined(data: DataConfig, parts: list[TokenDataset]) -> SampleSource:
    if data.sources is None:
        (only,) = parts
        return only
    return JoinedDataset(parts, names=[source.name for source in data.sources])


def _open(
    data: DataConfig, reading: Reading, path: Path, split: str, *, kind: DataFormat, stands_for_split: bool
) -> TokenDataset:
    vocabulary = None
    if data.eod_id is not None and reading.vocab_size is not None:
        vocabulary = Vocabulary(size=reading.vocab_size, eod_id=data.eod_id)
    place = SplitPlace(
        path=path,
        split=split,
        format=kind,
        stands_for_split=stands_for_split,
        token_type=data.token_type or _DEFAULT_TOKEN_TYPE,
        vocabulary=vocabulary,
    )
    return open_place(place, seq_length=reading.seq_length)


def open_place(place: SplitPlace, *, seq_length: int) -> TokenDataset:
    """Open a split.

    Raises:
        DataError: it cannot be read.
    """
    if place.format == "webdataset":
        return open_dataset(place.path, place.split, seq_length=seq_length)
    assert place.vocabulary is not None, f"the vocabulary of format {place.format} must be given"
    if place.format == "megatron":
        prefix = find_pair(place.path, place.split, stands_for_split=place.stands_for_split)
        stream = open_pair(prefix, eod_id=place.vocabulary.eod_id)
        return TokenDataset(stream, place.vocabulary, split=place.split, seq_length=seq_length)
    parts = find_parts(place.path, place.split, stands_for_split=place.stands_for_split)
    return TokenDataset(
        open_parts(parts, token_type=place.token_type, row_tokens=seq_length + 1),
        place.vocabulary,
        split=place.split,
        seq_length=seq_length,
        is_cut=True,
    )
