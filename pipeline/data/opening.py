"""From a run's data settings to the samples it trains on and those it is measured on."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.manifest import TokenType
from pipeline.config.schema import DataConfig
from pipeline.data.dataset import SampleSource, TokenDataset, Vocabulary
from pipeline.data.formats import DataFormat, SplitPlace, open_place

_DEFAULT_TOKEN_TYPE: TokenType = "uint16"


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
    return _open(data, reading, _path(data), data.train_split, kind=data.format, whole_is_split=True)


def open_heldout(data: DataConfig, reading: Reading) -> SampleSource:
    """Open the held-out split; text that is trained on is never taken for it.

    Raises:
        DataError: it cannot be read, or does not lie apart.
    """
    given = data.heldout_path is not None and data.heldout_path != data.path
    path = data.heldout_path if data.heldout_path is not None else _path(data)
    return _open(data, reading, path, data.heldout_split, kind=data.heldout_format, whole_is_split=given)


def _path(data: DataConfig) -> Path:
    assert data.path is not None, "the rules ask for data.path"
    return data.path


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
