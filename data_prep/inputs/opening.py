"""Open an input file, local or remote, compressed or not."""

import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from backports import zstd

from data_prep.inputs.documents import InputFile, compression_of
from data_prep.inputs.remote import RemoteFile
from data_prep.inputs.urls import is_url
from pipeline.shared.errors import DataError

# Of decompressed bytes; what is in it is lost with the bytes that cannot be decompressed.
_BUFFER_BYTES = 1 << 14
_STORED_BUFFER_BYTES = 1 << 16
# The largest window of a zstd frame, 2 GiB: archives of large corpora are packed with it.
_WINDOW_LOG = 31


class DamagedFileError(Exception):
    """An input file is truncated or cannot be decoded; what was read before is valid."""

    def __init__(self, message: str, *, number: int | None = None) -> None:
        """Take the reason, and the number of the first record that is lost, if known."""
        super().__init__(message)
        self.number = number


# Errors of decompression for bytes that are damaged or missing, and of disks that cannot read a file.
DAMAGE = (DamagedFileError, EOFError, OSError, lzma.LZMAError, zlib.error, zstd.ZstdError)


def _open_zstd(stored: io.BufferedReader) -> Any:
    return zstd.open(stored, options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


_OPENERS: dict[str, Callable[[io.BufferedReader], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}


@contextmanager
def open_input(file: InputFile) -> Iterator[io.BufferedReader]:
    """Open a file as it is stored.

    Raises:
        DataError: it was removed or changed since it was listed, or its server does not answer.
        OSError: it cannot be read, for example by its permissions.
    """
    with ExitStack() as stack:
        try:
            stream, size_bytes = _open(file.location)
        except FileNotFoundError as error:
            raise DataError(
                f"input files must not be removed while they are tokenized, but {file.path} was; "
                "run the command again when nothing changes the folder"
            ) from error
        stack.enter_context(stream)
        if size_bytes not in (None, file.size_bytes):
            raise DataError(
                f"input files must not change while they are tokenized, but {file.path} had "
                f"{file.size_bytes} bytes and has {size_bytes} now; run the command again when nothing "
                "changes the folder"
            )
        yield stream


@contextmanager
def open_decompressed(file: InputFile) -> Iterator[io.BufferedReader]:
    """Open the decompressed content of a file; its suffix determines the compression.

    Raises:
        DataError: as in :func:`open_input`.
    """
    with open_input(file) as stored:
        compression = compression_of(file.path)
        if compression is None:
            yield stored
        else:
            # Buffered: lines are then cut out by C.
            with (
                _OPENERS[compression](stored) as stream,
                io.BufferedReader(stream, _BUFFER_BYTES) as buffered,
            ):
                yield buffered


def _open(location: str) -> tuple[io.BufferedReader, int | None]:
    """Open a file; return it and its size, which some servers do not tell."""
    if is_url(location):
        remote = RemoteFile(location)
        return io.BufferedReader(remote, 1 << 20), remote.size_bytes
    # A pipe that has taken the place of the file must not be waited for.
    stream: io.BufferedReader = io.BufferedReader(
        io.FileIO(location, opener=_open_without_wait), _STORED_BUFFER_BYTES
    )
    return stream, os.fstat(stream.fileno()).st_size


def _open_without_wait(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
