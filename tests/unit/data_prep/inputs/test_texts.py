"""Long texts in parts, against the whole string."""

import json
import random

import pytest

from data_prep.inputs.json_records import json_text
from data_prep.inputs.texts import PART_BYTES, BadRecordError, utf8_text

UNITS = ["plain words ", "\n", '"', "\\", "\u00e9\u6f22", "\U0001f600", "\\u1234", "\t", "}{", "\x7f"]


def long_text(seed: int, num_bytes: int = 5 * PART_BYTES // 2) -> str:
    generator = random.Random(seed)
    return "".join(generator.choices(UNITS, k=num_bytes // 6))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_a_long_json_record_gives_what_json_gives(seed: int, ensure_ascii: bool) -> None:
    text = long_text(seed)
    record = {"id": [1, None], "other": text[::-1], "text": text, "short": '"a\\'}
    content = json.dumps(record, ensure_ascii=ensure_ascii).encode()
    parts = list(json_text(content, "text"))
    assert "".join(parts) == text
    assert max(len(part) for part in parts) <= PART_BYTES
    assert "".join(json_text(content, "short")) == '"a\\'


def test_the_last_of_equal_fields_counts_as_json_has_it() -> None:
    text = long_text(1)
    content = b'{"text": "first", "text": %b}' % json.dumps(text).encode()
    assert "".join(json_text(content, "text")) == text
    content = b'{"text": %b, "text": "last"}' % json.dumps(text).encode()
    assert list(json_text(content, "text")) == ["last"]


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b'\\q", "b": 1}', "not JSON: Invalid \\\\escape"),
        (b'\n"}', "not JSON: Invalid control character"),
        (b'\xe9"}', "not UTF-8"),
        (b'\\ud800"}', "half a character"),
        (b"", "not JSON: Unterminated string"),
        (b'"} more', "not JSON: Extra data"),
        (b'", "b": \xff}', "not UTF-8"),
    ],
)
def test_a_long_record_that_is_bad_at_its_end_is_refused_completely(tail: bytes, reason: str) -> None:
    content = b'{"text": "' + b"a" * (2 * PART_BYTES) + tail
    with pytest.raises(BadRecordError, match=reason):
        json_text(content, "text")
    with pytest.raises((ValueError, UnicodeError)):
        json.loads(content)["text"].encode()


def test_long_bytes_decode_as_they_do_at_once() -> None:
    text = long_text(2)
    content = text.encode()
    parts = list(utf8_text(content))
    assert "".join(parts) == text
    assert len(parts) == -(-len(content) // PART_BYTES)
    with pytest.raises(UnicodeDecodeError) as found:
        utf8_text(content + b"\xe9")
    assert found.value.start == len(content)


def test_an_empty_text_has_no_parts() -> None:
    assert utf8_text(b"") == ()
    assert json_text(b'{"text": ""}', "text") == ()
