"""Open a split in any of the formats that training reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.manifest import TokenType
from pipeline.data.dataset import TokenDataset, Vocabulary, open_dataset
from pipeline.data.megatron_stream import find_pair, open_pair
from pipeline.data.row_stream import find_parts, open_parts

DataFormat = Literal["webdataset", "megatron", "rows"]


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
