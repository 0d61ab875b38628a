"""Prompts read from a file, and generated texts written as JSON lines."""

import json
from pathlib import Path
from typing import Any

from pipeline.generation.texts import GeneratedText
from pipeline.shared.errors import DataError

JSON_LINES = (".jsonl", ".ndjson")
PROMPT_KEY = "prompt"


def read_prompts_file(path: Path) -> list[str]:
    """Read prompts, one per line; blank lines are skipped.

    Args:
        path: with the suffix ``.jsonl`` or ``.ndjson`` every line is a JSON object with the text under
            ``prompt``; otherwise every line is a prompt.
    Raises:
        DataError: the file cannot be read, has no prompt, or a line is not such an object.
    """
    try:
        # A byte-order mark is no part of the first prompt; other breaks than line feeds are part of a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} must be a text file in UTF-8, but cannot be read: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise DataError(f"{path} must have a prompt on a line, but has none; write one")
    if path.suffix not in JSON_LINES:
        return [line for _, line in numbered]
    return [_prompt_of(line, f"{path}:{number}") for number, line in numbered]


def _prompt_of(line: str, place: str) -> str:
    try:
        # Nobody asks for the numbers beside the text, which may have any length.
        content = json.loads(line, parse_int=float)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} must be a JSON object, but is not: {error}") from error
    prompt = content.get(PROMPT_KEY) if isinstance(content, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise DataError(f'{place} must have a text under "{PROMPT_KEY}", but has {prompt!r}')
    return prompt


def json_line(text: GeneratedText) -> str:
    """Return a text as one line of JSON, without a line break."""
    added = [token for token in text.tokens if not token.is_prompt]
    content: dict[str, Any] = {
        "number": text.number,
        "prompt": text.prompt,
        "continuation": text.continuation,
        "ending": text.ending,
        "num_prompt_tokens": len(text.tokens) - len(added),
        "num_tokens": len(added),
        "mean_steps": text.mean_steps,
        "pieces": [token.piece for token in text.tokens],
        "steps": [token.steps for token in text.tokens],
        "nll": [token.nll for token in text.tokens],
    }
    return json.dumps(content, ensure_ascii=False)
