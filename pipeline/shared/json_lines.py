"""Files with one JSON object per line, which a crash may have cut short."""

import json
from collections.abc import Iterator
from typing import Any

__all__ = ["parse_json_lines"]


def parse_json_lines(text: str, *, place: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the object of each line.

    A last line that is damaged is skipped: whoever wrote it crashed.

    Args:
        text: of the file, or of its end.
        place: the file, for the error; None skips every damaged line.
    Raises:
        ValueError: a line before the last is not a JSON object.
    """
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            if place is None or number == len(lines):
                continue
            raise ValueError(
                f"{place}:{number} must be a JSON object, but is {line[:80]!r}; remove it"
            ) from error
        yield content
