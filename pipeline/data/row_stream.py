"""The tokens of pre-shuffled rows: raw numbers in one or several `.bin` parts, as Pythia's are."""

from pathlib import Path

from data_prep.manifest import TokenType
from data_prep.storage.shard_format import token_dtype
from pipeline.data.file_stream import FileStream
from pipeline.data.stream import JoinedStream
from pipeline.shared.errors import DataError


def find_parts(path: Path, split: str, *, stands_for_split: bool) -> tuple[Path, ...]:
    """Return the parts that hold a split, in the order of their names.

    Args:
        path: a folder with a folder of parts for each split, a folder of parts, or one part.
        split: name of the split.
        stands_for_split: parts that are not in a folder of the split's name may serve as the split.
    Raises:
        DataError: there are none.
    """
    own = tuple(sorted((path / split).glob("*.bin")))
    if own:
        return own
    parts = (path,) if path.is_file() else tuple(sorted(path.glob("*.bin")))
    if parts and stands_for_split:
        return parts
    if parts:
        raise DataError(
            f"the split {split!r} must be separate from the training data, but {path} has no folder of that "
            "name; give data.heldout_path"
        )
    raise DataError(
        f"{path} must be a folder with .bin parts, or with a folder {split!r} of them, "
        "but holds none; check data.path and data.format"
    )


def open_parts(parts: tuple[Path, ...], *, token_type: TokenType, row_tokens: int) -> JoinedStream:
    """Open the parts; a row may begin in one and end in the next.

    Args:
        parts: files, in order.
        token_type: stored type of a token.
        row_tokens: tokens of a row, including the last, which is only predicted.
    Raises:
        DataError: the size of a part is not a multiple of a token, or that of all parts not one of a row.
    """
    dtype = token_dtype(token_type)
    for part in parts:
        if part.stat().st_size % dtype.itemsize or part.stat().st_size == 0:
            raise DataError(
                f"{part} must hold tokens of {dtype.itemsize} bytes, but has {part.stat().st_size} bytes; "
                "check data.token_type, or copy the file again"
            )
    stream = JoinedStream([FileStream(part, dtype) for part in parts])
    if len(stream) % row_tokens:
        raise DataError(
            f"{parts[0].parent} must hold rows of training.seq_length + 1 = {row_tokens} tokens, but its "
            f"{len(parts)} parts hold {len(stream)} tokens, {len(stream) % row_tokens} too many; "
            "check training.seq_length and data.token_type, and that no part is missing"
        )
    return stream
