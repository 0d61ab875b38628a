"""The text in a JSON record, with little memory even if the text has hundreds of megabytes."""

import json
import secrets
from typing import Any

from data_prep.inputs.texts import (
    PART_BYTES,
    BadRecordError,
    ForeignRecordError,
    Parts,
    json_string_text,
    short_text,
    shown,
)

# What a record may have besides its long strings: as objects, it takes up to twenty times the memory.
_LARGEST_SKELETON_BYTES = 32 << 20
# Python refuses to parse integers of thousands of digits; nobody asks for their values.
_LENIENT = json.JSONDecoder(parse_int=float)


def json_text(content: bytes, field: str) -> Parts:
    """Return the text of a field of a JSON object.

    Raises:
        BadRecordError: it is not a JSON object with text in that field.
        UnicodeDecodeError: it is not UTF-8.
    """
    try:
        if len(content) > PART_BYTES:
            return _long_record_text(content, field)
        return checked_text(_field(_parsed(content.decode("utf-8")), field), field)
    except json.JSONDecodeError as error:
        raise ForeignRecordError(f"not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise BadRecordError("not JSON that can be read: it is nested too deeply") from error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return _LENIENT.decode(text)


def checked_text(value: object, field: str) -> Parts:
    """Return the text of a value that should be text.

    Raises:
        BadRecordError: it is not text, or contains half a character.
    """
    if not isinstance(value, str):
        kind = BadRecordError if value is None else ForeignRecordError
        raise kind(f"field {field!r} must be text, but is {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can express half of a surrogate pair, which is not a character.
        raise BadRecordError(f"half a character at position {error.start} of field {field!r}") from error
    return short_text(value)


def _field(record: object, field: str) -> object:
    if not isinstance(record, dict):
        raise ForeignRecordError(f"a record must be a JSON object, but is {shown(record)}")
    if field not in record:
        raise ForeignRecordError(f"no field {field!r}, only {shown(sorted(record))}")
    return record[field]


def _long_record_text(content: bytes, field: str) -> Parts:
    """Parse a record without its long strings, which are then decoded in parts."""
    skeleton, literals = _put_long_strings_aside(content)
    if len(skeleton) > _LARGEST_SKELETON_BYTES:
        raise BadRecordError(
            f"it has {len(skeleton)} bytes besides its long strings, and may have {_LARGEST_SKELETON_BYTES}"
        )
    try:
        value = _field(_parsed(skeleton.decode("utf-8")), field)
        texts = {name: json_string_text(literal) for name, literal in literals.items()}
    except json.JSONDecodeError as error:
        # Without the position, which would be that in the record without its long strings.
        raise ForeignRecordError(f"not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise BadRecordError(f"not UTF-8: {error.reason}") from error
    except UnicodeEncodeError as error:
        raise BadRecordError("half a character in a string") from error
    return texts[value] if isinstance(value, str) and value in texts else checked_text(value, field)


def _put_long_strings_aside(content: bytes) -> tuple[bytes, dict[str, memoryview]]:
    """Replace each long string by a name; return the result and the strings by name."""
    # A random name, which no record can contain by chance or on purpose.
    prefix = secrets.token_hex(16)
    view = memoryview(content)
    literals: dict[str, memoryview] = {}
    kept: list[bytes | memoryview] = []
    copied = position = 0
    while (opening := content.find(b'"', position)) >= 0:
        closing = _closing_quote(content, opening)
        if closing - opening > PART_BYTES:
            name = f"{prefix}-{len(literals)}"
            literals[name] = view[opening + 1 : closing]
            kept += [view[copied : opening + 1], name.encode()]
            copied = closing
        position = closing + 1
    return b"".join([*kept, view[copied:]]), literals


def _closing_quote(content: bytes, opening: int) -> int:
    """Return where a string ends, or the end of the content if it does not."""
    closing = content.find(b'"', opening + 1)
    while closing >= 0 and _num_backslashes_before(content, closing) % 2 == 1:
        closing = content.find(b'"', closing + 1)
    return closing if closing >= 0 else len(content)


def _num_backslashes_before(content: bytes, position: int) -> int:
    start = position
    while content[start - 1] == ord("\\"):
        start -= 1
    return position - start
