"""The text in a JSON record, in little memory also where the text is hundreds of megabytes."""

import json
import secrets

from data_prep.inputs.texts import PART_BYTES, BadRecordError, Parts, json_string_text, short_text, shown


def json_text(content: bytes, field: str) -> Parts:
    """Text of a field of a JSON object.

    Raises:
        BadRecordError: this is no JSON object with text in that field.
        UnicodeDecodeError: it is not UTF-8.
    """
    try:
        if len(content) > PART_BYTES:
            return _long_record_text(content, field)
        return checked_text(_field(json.loads(content.decode("utf-8")), field), field)
    except json.JSONDecodeError as error:
        raise BadRecordError(f"not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise BadRecordError("not JSON that can be read: it is nested too deeply") from error


def checked_text(value: object, field: str) -> Parts:
    """Text of a value that should be text.

    Raises:
        BadRecordError: it is not, or holds half a character.
    """
    if not isinstance(value, str):
        raise BadRecordError(f"field {field!r} must be text, but is {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair, which is no character
        raise BadRecordError(f"half a character at position {error.start} of field {field!r}") from error
    return short_text(value)


def _field(record: object, field: str) -> object:
    if not isinstance(record, dict):
        raise BadRecordError(f"a record must be a JSON object, but is {shown(record)}")
    if field not in record:
        raise BadRecordError(f"no field {field!r}, only {shown(sorted(record))}")
    return record[field]


def _long_record_text(content: bytes, field: str) -> Parts:
    """Read a record with its long strings put aside, which are then read in parts."""
    skeleton, literals = _put_long_strings_aside(content)
    try:
        value = _field(json.loads(skeleton), field)
        texts = {name: json_string_text(literal) for name, literal in literals.items()}
    except json.JSONDecodeError as error:
        # positions in what is left of the record would name the wrong place
        raise BadRecordError(f"not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise BadRecordError(f"not UTF-8: {error.reason}") from error
    except UnicodeEncodeError as error:
        raise BadRecordError("half a character in a string") from error
    return texts[value] if isinstance(value, str) and value in texts else checked_text(value, field)


def _put_long_strings_aside(content: bytes) -> tuple[bytes, dict[str, memoryview]]:
    """Return the record with a name in the place of each long string, and what stood there."""
    # a name that no record can know, and so none can have by chance or by will
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
    """Where a string ends; the end of the content if it does not."""
    closing = content.find(b'"', opening + 1)
    while closing >= 0 and _num_backslashes_before(content, closing) % 2 == 1:
        closing = content.find(b'"', closing + 1)
    return closing if closing >= 0 else len(content)


def _num_backslashes_before(content: bytes, position: int) -> int:
    start = position
    while content[start - 1] == ord("\\"):
        start -= 1
    return position - start
