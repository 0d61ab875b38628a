"""The file beside a ``tokenizer.json`` that says which token ends documents, as Hugging Face has it."""

import json
from pathlib import Path

from pipeline.shared.errors import DataError

SPECIAL_TOKENS_NAME = "special_tokens_map.json"


def special_eod_token(path: Path) -> str | None:
    """Name of the ``eos_token`` in the ``special_tokens_map.json`` beside a tokenizer, if there is one."""
    try:
        found = json.loads((path.parent / SPECIAL_TOKENS_NAME).read_bytes()).get("eos_token")
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, AttributeError) as error:
        raise DataError(f"{path.parent / SPECIAL_TOKENS_NAME} must be a JSON object, but is not") from error
    name = found.get("content") if isinstance(found, dict) else found
    return name if isinstance(name, str) else None


def special_tokens_map(eod_token: str) -> bytes:
    """Content of the file that :func:`special_eod_token` reads."""
    return (json.dumps({"eos_token": eod_token}, indent=1) + "\n").encode()
