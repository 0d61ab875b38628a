"""Files behind fsspec URLs. Every question to a server has a limit, and every failure names the URL."""

import io
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from data_prep.inputs.urls import mask_url
from pipeline.shared.errors import DataError

# For a question such as the size of a file.
ANSWER_SECONDS = 15.0
# For the next block of a file, of at most BLOCK_BYTES. A server that sends a byte a second is too slow.
READ_SECONDS = 60.0
BLOCK_BYTES = 1 << 20

Result = TypeVar("Result")


def ask(url: str, question: Callable[[], Result], *, seconds: float = ANSWER_SECONDS) -> Result:
    """Run an action that waits for the server of a URL.

    Raises:
        FileNotFoundError: the server says that there is no such file.
        DataError: it does not answer in time, or with an error.
    """
    results: list[Result] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(question())
        except Exception as error:  # of any library behind fsspec
            errors.append(error)

    # A daemon: a thread that hangs must not keep the process from exiting.
    thread = threading.Thread(target=run, name="remote input", daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    if not errors:
        raise DataError(
            f"the server of {mask_url(url)} must answer within {seconds:.0f} seconds, but does not; check "
            "the address and the network, or copy the file to a local disk"
        )
    if isinstance(errors[0], FileNotFoundError | DataError):
        raise errors[0]
    raise unreadable(url, errors[0]) from None


def unreadable(url: str, error: BaseException) -> DataError:
    """Return the error for a URL that cannot be read because of a library's error."""
    return DataError(
        f"{mask_url(url)} must be readable, but is not: {describe(error)}; check the address, the "
        "credentials and the network, or copy the file to a local disk"
    )


def describe(error: BaseException) -> str:
    """Render an error of a library in one line, without the secrets of URLs."""
    text = " ".join(mask_url(str(error)).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it.

    Raises:
        DataError: fsspec knows no such file system, or it cannot be used.
    """
    try:
        found: tuple[Any, str] = ask(url, lambda: fsspec.core.url_to_fs(url, **_options(url)))
        return found
    except FileNotFoundError as error:
        raise _not_a_file_system(url, error) from None
    except DataError as error:
        raise _not_a_file_system(url, error) from None


def _options(url: str) -> dict[str, Any]:
    if not is_http(url):
        return {}
    import aiohttp

    # By default a file must be read completely within five minutes.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_SECONDS, sock_read=READ_SECONDS)
    return {"client_kwargs": {"timeout": timeout}}


def is_http(url: str) -> bool:
    """Tell whether a URL is of a web server, which has no folders but pages that list files."""
    return url.startswith(("http://", "https://"))


def _not_a_file_system(url: str, error: Exception) -> DataError:
    return DataError(
        f"{mask_url(url)} must be a URL that fsspec can open, but it reports: {describe(error)}; "
        "install the file system's package (s3fs for s3://, gcsfs for gs://), or copy the files"
    )


class RemoteFile(io.RawIOBase):
    """A remote file for reading; no read waits longer than :data:`READ_SECONDS`."""

    def __init__(self, url: str) -> None:
        """Open the file.

        Raises:
            FileNotFoundError: there is none.
            DataError: the server does not answer, or refuses.
        """
        super().__init__()
        self._url = url
        system, path = file_system(url)
        self._file: Any = ask(url, lambda: system.open(path, "rb"))

    @property
    def size_bytes(self) -> int | None:
        """Size of the file; None if the server does not say."""
        size: int | None = self._file.size
        return size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), BLOCK_BYTES)
        # Not into the buffer: a read that comes too late must not change it.
        content = ask(self._url, lambda: self._file.read(wanted), seconds=READ_SECONDS)
        view[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return ask(self._url, lambda: int(self._file.seek(offset, whence)))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            # Closing a connection that hangs may hang as well.
            thread = threading.Thread(target=self._file.close, daemon=True)
            thread.start()
            thread.join(ANSWER_SECONDS)
        super().close()
