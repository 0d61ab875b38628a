"""Opening an input file, wherever it lies and however it is compressed."""

import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import IO, cast

import fsspec
from backports import zstd

from data_prep.inputs.documents import InputFile
from data_prep.inputs.finding import is_url
from pipeline.shared.errors import DataError


class DamagedFileError(Exception):
    """The content of an input file breaks off or cannot be decoded; what was read before it is good."""

    def __init__(self, message: str, *, number: int | None = None) -> None:
        """Take what was found, and the number of the first record that is lost where it is known."""
        super().__init__(message)
        self.number = number


# what decompression says about bytes that are wrong or missing
DAMAGE = (DamagedFileError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstd.ZstdError)

_OPENERS: tuple[tuple[tuple[str, ...], Callable[[IO[bytes]], AbstractContextManager[object]]], ...] = (
    ((".gz", ".tgz"), gzip.open),
    ((".xz",), lzma.open),
    ((".zst",), zstd.open),
)


@contextmanager
def open_input(file: InputFile) -> Iterator[IO[bytes]]:
    """Open a file as it is stored.

    Raises:
        DataError: it is gone, or changed since it was listed.
    """
    with ExitStack() as stack:
        try:
            stream: IO[bytes] = stack.enter_context(_open(file.location))
        except FileNotFoundError as error:
            raise DataError(
                f"input files must stay while they are tokenized, but {file.path} is gone; "
                "run the command again once the folder is quiet"
            ) from error
        size_bytes = stream.seek(0, os.SEEK_END)
        if size_bytes != file.size_bytes:
            raise DataError(
                f"input files must not change while they are tokenized, but {file.path} had "
                f"{file.size_bytes} bytes and has {size_bytes} now; run the command again once the folder "
                "is quiet"
            )
        stream.seek(0)
        yield stream


@contextmanager
def open_decompressed(file: InputFile) -> Iterator[IO[bytes]]:
    """Open a file's content; the end of the name tells the compression.

    Raises:
        DataError: as in :func:`open_input`.
    """
    with open_input(file) as stored:
        decompress = next((opener for suffix, opener in _OPENERS if file.path.lower().endswith(suffix)), None)
        if decompress is None:
            yield stored
        else:
            with decompress(stored) as stream:
                # the three kinds of stream are read as files are, but share no type that says so
                yield cast(IO[bytes], stream)


def _open(location: str) -> IO[bytes]:
    if is_url(location):
        opened: IO[bytes] = fsspec.open(location, "rb").open()
        return opened
    return open(location, "rb")  # noqa: PTH123 (the caller closes it; a location is a string)
