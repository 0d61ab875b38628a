"""The tokens of a Megatron `.bin` and `.idx` pair, documents in the order of the index."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.file_stream import FileStream
from pipeline.shared.errors import DataError

# Documents whose last token is checked when a pair is opened, spread over all of them.
_NUM_CHECKED_DOCUMENTS = 1000


def find_pair(path: Path, split: str, *, stands_for_split: bool) -> Path:
    """Return the prefix of the pair that holds a split.

    Args:
        path: a folder with a pair named after each split, or the prefix of one pair.
        split: name of the split.
        stands_for_split: a single pair may serve as the split.
    Raises:
        DataError: there is no such pair.
    """
    if _is_pair(path / split):
        return path / split
    if _is_pair(path) and stands_for_split:
        return path
    if _is_pair(path):
        raise DataError(
            f"the split {split!r} must be separate from the training data, but {path} is one pair of "
            ".bin and .idx; give data.heldout_path"
        )
    raise DataError(
        f"{path} must be a folder with {split}.bin and {split}.idx, or the prefix of one such pair, "
        "but neither is there; check data.path and data.format"
    )


def open_pair(prefix: Path, *, eod_id: int) -> FileStream:
    """Open the tokens of a pair.

    Args:
        prefix: path without `.bin` and `.idx`.
        eod_id: the token that ends every document.
    Raises:
        DataError: the files are damaged or not of the same pair, or documents end with another token.
    """
    try:
        # The reader inside Megatron's IndexedDataset, because its errors are clearer.
        # Megatron-Core imports torch, which checks of other data have no need of.
        from megatron.core.datasets.indexed_dataset import _IndexReader

        index: Any = _IndexReader(f"{prefix}.idx", multimodal=False)
    except Exception as error:  # of any kind: a damaged index may have any values
        raise _no_pair(prefix, error) from error
    dtype = np.dtype(index.dtype)
    if dtype.kind not in "iu":
        raise DataError(f"{prefix}.bin must hold integers, but holds {dtype}; tokenize the text again")
    _check_contiguous(prefix, index, dtype.itemsize)
    stream = FileStream(Path(f"{prefix}.bin"), dtype)
    try:
        _check_document_ends(prefix, index, stream, eod_id)
    except (IndexError, AssertionError) as error:
        raise _no_pair(prefix, error) from error
    return stream


def _no_pair(prefix: Path, error: Exception) -> DataError:
    return DataError(
        f"{prefix}.bin and .idx must be a pair that Megatron reads, but are not: "
        f"{error or type(error).__name__}; write them again with `megaponder data prepare --format megatron` "
        "or Megatron's own tool"
    )


def _is_pair(prefix: Path) -> bool:
    return all(prefix.with_name(prefix.name + suffix).is_file() for suffix in (".bin", ".idx"))


def _check_contiguous(prefix: Path, index: Any, token_bytes: int) -> None:
    """Check that the sequences of the index fill the file without gaps."""
    if len(index.sequence_pointers) == 0:
        raise DataError(f"{prefix}.bin must hold at least one document, but holds none; tokenize some text")
    ends = index.sequence_pointers + index.sequence_lengths.astype(np.int64) * token_bytes
    starts = np.concatenate([index.sequence_pointers[1:], [Path(f"{prefix}.bin").stat().st_size]])
    if index.sequence_pointers[0] != 0 or (wrong := np.flatnonzero(ends != starts)).size:
        first = int(wrong[0]) if index.sequence_pointers[0] == 0 else 0
        raise DataError(
            f"{prefix}.bin must hold the sequences of its index one after the other and nothing else, but "
            f"sequence {first} does not end where the next one or the file's end is; "
            "copy both files again, or write them again"
        )


def _check_document_ends(prefix: Path, index: Any, stream: FileStream, eod_id: int) -> None:
    num_documents = len(index.document_indices) - 1
    documents = np.unique(np.linspace(0, num_documents - 1, _NUM_CHECKED_DOCUMENTS).astype(np.int64))
    # The end of a document is where its last sequence ends.
    last = index.document_indices[documents + 1] - 1
    token_bytes = np.dtype(index.dtype).itemsize
    ends = index.sequence_pointers[last] // token_bytes + index.sequence_lengths[last]
    found = np.concatenate([next(stream.pieces(int(end) - 1, int(end))) for end in ends])
    if (wrong := np.flatnonzero(found != eod_id)).size:
        raise DataError(
            f"every document of {prefix}.bin must end with data.eod_id ({eod_id}), but document "
            f"{documents[wrong[0]]} ends with {found[wrong[0]]}; set data.eod_id, "
            "or preprocess the text with --append-eod"
        )
