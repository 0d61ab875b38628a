"""Open an input file, local or remote, compressed or not."""

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
    """An input file is truncated or cannot be decoded; what was read before is valid."""

    def __init__(self, message: str, *, number: int | None = None) -> None:
        """Take the reason, and the number of the first record that is lost, if known."""
        super().__init__(message)
        self.number = number


# Errors of decompression for bytes that are damaged or missing.
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
        DataError: it was removed or changed since it was listed.
    """
    with ExitStack() as stack:
        try:
            stream: IO[bytes] = stack.enter_context(_open(file.location))
        except FileNotFoundError as error:
            raise DataError(
                f"input files must not be removed while they are tokenized, but {file.path} was; "
                "run the command again when nothing changes the folder"
            ) from error
        size_bytes = stream.seek(0, os.SEEK_END)
        if size_bytes != file.size_bytes:
            raise DataError(
                f"input files must not change while they are tokenized, but {file.path} had "
                f"{file.size_bytes} bytes and has {size_bytes} now; run the command again when nothing "
                "changes the folder"
            )
        stream.seek(0)
        yield stream


@contextmanager
def open_decompressed(file: InputFile) -> Iterator[IO[bytes]]:
    """Open the decompressed content of a file; its suffix determines the compression.

    Raises:
        DataError: as in :func:`open_input`.
    """
    with open_input(file) as stored:
        decompress = next((opener for suffix, opener in _OPENERS if file.path.lower().endswith(suffix)), None)
        if decompress is None:
            yield stored
        else:
            with decompress(stored) as stream:
                # The three kinds of streams have a file's methods for reading, but no type in common.
                yield cast(IO[bytes], stream)


def _open(location: str) -> IO[bytes]:
    if is_url(location):
        opened: IO[bytes] = fsspec.open(location, "rb").open()
        return opened
    return open(location, "rb")  # noqa: PTH123 (the caller closes it; a location is a string)
