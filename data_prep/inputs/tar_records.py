"""The texts in the members of a webdataset tar."""

import io
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from data_prep.inputs.opening import DamagedFileError
from data_prep.inputs.texts import BadRecordError, Parts, check_size, shown, utf8_text, without_mark
from data_prep.manifest import ReadSettings

# Long names, comments and maps of sparse files, which are read at once.
_LARGEST_HEADER_BYTES = 1 << 20
_MOST_NAMES_SHOWN = 5


def read_members(
    stream: io.BufferedReader, reading: ReadSettings
) -> Iterator[tuple[int, Callable[[], Parts]]]:
    """Yield the number of each ``.txt`` member, counting all from 1, and the function that makes its text.

    The function must be called before the next member is requested.

    Args:
        stream: the decompressed tar.
        reading: with the largest size of a member.
    Raises:
        DamagedFileError: it is not a tar, it is truncated, or it has no such member.
    """
    other_names: list[str] = []
    has_text = False
    limited = _LimitedStream(stream)
    try:
        with limited:
            archive = tarfile.open(fileobj=limited, mode="r|", tarinfo=_Member)  # type: ignore[call-overload]  # noqa: SIM115
        with archive as tar:
            number = 0
            while (member := _next(tar, limited)) is not None:
                number += 1
                if member.isfile() and member.name.endswith(".txt"):
                    has_text = True
                    yield number, partial(_member_text, tar, member, reading)
                elif len(other_names) < _MOST_NAMES_SHOWN:
                    other_names.append(member.name)
    except tarfile.TarError as error:
        raise DamagedFileError(str(error)) from error
    if not has_text:
        found = f"; there are {shown(other_names)}" if other_names else ""
        raise DamagedFileError(f"no member ends in .txt{found}", number=1)


def _next(tar: tarfile.TarFile, stream: "_LimitedStream") -> "_Member | None":
    """Return the next member; its header is limited, but not the content that is skipped before it."""
    if tar.firstmember is None:  # type: ignore[attr-defined]
        if tar._loaded:  # type: ignore[attr-defined]
            return None
        tar.fileobj.seek(tar.offset)
    # All members that were read are kept otherwise.
    tar.members.clear()  # type: ignore[attr-defined]
    with stream:
        member: Any = tar.next()
    return member  # type: ignore[no-any-return]


def _member_text(tar: tarfile.TarFile, member: "_Member", reading: ReadSettings) -> Parts:
    if member.fault is not None:
        raise BadRecordError(f"its header is damaged: {member.fault}")
    check_size(member.size, reading)
    try:
        reader = tar.extractfile(member)
        assert reader is not None, "a plain file has content"
        content = reader.read()
    except tarfile.TarError as error:
        raise DamagedFileError(str(error)) from error
    return utf8_text(without_mark(content))


class _Member(tarfile.TarInfo):
    """A member whose absence is an error; for tarfile, an archive without its end mark is complete.

    ``fault`` is what is wrong with the extended header of a member whose place in the archive is known.
    """

    fault: str | None = None

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the archive is truncated or damaged: {error}") from error
        except (ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise tarfile.ReadError(f"the header of a member is damaged: {error}") from error

    def _proc_gnusparse_00(self, next: "_Member", *arguments: Any) -> None:  # noqa: A002 (tarfile's name)
        _note_fault(next, partial(super()._proc_gnusparse_00, next, *arguments))  # type: ignore[misc]

    def _proc_gnusparse_01(self, next: "_Member", *arguments: Any) -> None:  # noqa: A002
        _note_fault(next, partial(super()._proc_gnusparse_01, next, *arguments))  # type: ignore[misc]

    def _proc_gnusparse_10(self, next: "_Member", *arguments: Any) -> None:  # noqa: A002
        _note_fault(next, partial(super()._proc_gnusparse_10, next, *arguments))  # type: ignore[misc]

    def _apply_pax_info(self, *arguments: Any) -> None:
        _note_fault(self, partial(super()._apply_pax_info, *arguments))  # type: ignore[misc]


def _note_fault(member: _Member, process: Callable[[], None]) -> None:
    try:
        process()
    except (ValueError, ArithmeticError, LookupError) as error:
        member.fault = str(error)


class _LimitedStream:
    """A stream of which no more than :data:`_LARGEST_HEADER_BYTES` may be read inside a ``with`` block."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._remaining: int | None = None

    def __enter__(self) -> None:
        self._remaining = _LARGEST_HEADER_BYTES

    def __exit__(self, *_error: object) -> None:
        self._remaining = None

    def read(self, num_bytes: int = -1) -> bytes:
        if self._remaining is not None:
            if self._remaining <= 0:
                raise DamagedFileError(f"a header has more than {_LARGEST_HEADER_BYTES} bytes")
            self._remaining -= num_bytes
        return self._stream.read(num_bytes)
