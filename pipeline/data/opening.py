"""From a run's data settings to the samples it trains on and those it is measured on."""

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
    """Where a split lies and how it is to be read.

    Attributes:
        path: folder, prefix of a pair, or part.
        split: name of the split.
        format: how the tokens are stored.
        whole_is_split: what is at the path may stand for the split as a whole.
        token_type: of rows, how a token is stored.
        vocabulary: of the formats that do not say themselves what their tokens are.
    """

    path: Path
    split: str
    format: DataFormat
    whole_is_split: bool
    token_type: TokenType
    vocabulary: Vocabulary | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What reading needs to know of the model: tokens per row, and its ids where they are configured."""

    seq_length: int
    vocab_size: int | None


def open_training(data: DataConfig, reading: Reading) -> SampleSource:
    """Open the split that is trained on.

    Raises:
        DataError: it cannot be read.
    """
    parts = [
        _open(data, reading, path, data.train_split, kind=data.format, whole_is_split=True)
        for path in data.training_paths
    ]
    return _joined(data, parts)


def open_heldout(data: DataConfig, reading: Reading) -> SampleSource:
    """Open the held-out split; text that is trained on is never taken for it.

    Raises:
        DataError: it cannot be read, or does not lie apart.
    """
    paths, kind = data.training_paths, data.heldout_format
    if data.heldout_path is not None:
        apart = data.heldout_path not in paths
        return _open(data, reading, data.heldout_path, data.heldout_split, kind=kind, whole_is_split=apart)
    parts = [
        _open(data, reading, path, data.heldout_split, kind=kind, whole_is_split=False) for path in paths
    ]
    return _joined(data, parts)


def training_order(data: DataConfig, source: SampleSource, *, seed: int) -> Order:
    """The order in which the samples of :func:`open_training` are trained on."""
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
    data: DataConfig, reading: Reading, path: Path, split: str, *, kind: DataFormat, whole_is_split: bool
) -> TokenDataset:
    vocabulary = None
    if data.eod_id is not None and reading.vocab_size is not None:
        vocabulary = Vocabulary(size=reading.vocab_size, eod_id=data.eod_id)
    place = SplitPlace(
        path=path,
        split=split,
        format=kind,
        whole_is_split=whole_is_split,
        token_type=data.token_type or _DEFAULT_TOKEN_TYPE,
        vocabulary=vocabulary,
    )
    return open_place(place, seq_length=reading.seq_length)


def open_place(place: SplitPlace, *, seq_length: int) -> TokenDataset:
    """Open a split.

    Raises:
        DataError: nothing usable is there.
    """
    if place.format == "webdataset":
        return open_dataset(place.path, place.split, seq_length=seq_length)
    assert place.vocabulary is not None, f"the vocabulary of format {place.format} must be given"
    if place.format == "megatron":
        prefix = find_pair(place.path, place.split, whole_is_split=place.whole_is_split)
        stream = open_pair(prefix, eod_id=place.vocabulary.eod_id)
        return TokenDataset(stream, place.vocabulary, split=place.split, seq_length=seq_length)
    parts = find_parts(place.path, place.split, whole_is_split=place.whole_is_split)
    return TokenDataset(
        open_parts(parts, token_type=place.token_type, row_tokens=seq_length + 1),
        place.vocabulary,
        split=place.split,
        seq_length=seq_length,
        is_cut=True,
    )
