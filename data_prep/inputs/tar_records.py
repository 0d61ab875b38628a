"""The texts in the members of a webdataset tar."""

import tarfile
from collections.abc import Iterator
from functools import partial

from data_prep.inputs.documents import InputFile
from data_prep.inputs.opening import DamagedFileError, open_decompressed
from data_prep.inputs.texts import Parts, utf8_text


def read_members(file: InputFile) -> Iterator[tuple[int, partial[Parts]]]:
    """Yield the number of each ``.txt`` member, counting all from 1, and the function that makes its text.

    Raises:
        DamagedFileError: it is not a tar, it is truncated, or it has no such member.
    """
    has_text = False
    with open_decompressed(file) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=_CheckedMember) as tar:
                for number, member in enumerate(tar, start=1):
                    if member.isfile() and member.name.endswith(".txt"):
                        has_text = True
                        yield number, partial(utf8_text, _member_bytes(tar, member))
        except tarfile.TarError as error:
            raise DamagedFileError(str(error)) from error
    if not has_text:
        raise DamagedFileError("no member ends in .txt")


def _member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    reader = tar.extractfile(member)
    assert reader is not None, "a plain file has content"
    return reader.read()


class _CheckedMember(tarfile.TarInfo):
    """A member whose absence is an error; for tarfile, an archive without its end mark is complete."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_CheckedMember":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the archive is truncated or damaged: {error}") from error
