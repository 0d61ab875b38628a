"""Compare the first bytes of a file with what its name says it is."""

import codecs
import json

from data_prep.inputs.documents import FileFormat
from data_prep.inputs.texts import without_mark

HEAD_BYTES = 1 << 16

_TAR_MARK_BYTE = 257
_MARKS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b\x08", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"BZh", "a bzip2 file"),
    (b"\x04\x22\x4d\x18", "an lz4 file"),
    (b"PK\x03\x04", "a zip file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip file"),
    (b"PAR1", "a parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"%PDF-", "a PDF file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x89PNG\r\n", "a PNG file"),
    (b"\xff\xd8\xff", "a JPEG file"),
    (b"\x7fELF", "a program"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)
_CURES = {"UTF-16 text": "convert it to UTF-8"}


def foreign_content(head: bytes, kind: FileFormat, field: str) -> str | None:
    """Return why a file is not what its name says, or None.

    Args:
        head: the first :data:`HEAD_BYTES` of its content, after decompression.
        kind: what the name says.
        field: where the text would be if the file had JSON records.
    """
    found = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    # A text may begin with such letters, but has no binary content after them.
    if found is not None and (b"\x00" in head or not _is_text(head)):
        return f"it is {found}, which its name does not say; {_CURES.get(found, 'rename or unpack it')}"
    if kind == "tar":
        return None
    if head[_TAR_MARK_BYTE : _TAR_MARK_BYTE + 5] == b"ustar":
        return "it is a tar, which its name does not say; rename it"
    if kind in ("text", "lines") and _has_text_field(head, field):
        return f"it has JSON records with a field {field!r}, which its name does not say; end it in .jsonl"
    return None


def _is_text(head: bytes) -> bool:
    try:
        # The end may be inside a character.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _has_text_field(head: bytes, field: str) -> bool:
    content = without_mark(head).lstrip()
    if not content.startswith(b"{"):
        return False
    line, _, _ = content.partition(b"\n")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and isinstance(record.get(field), str)
