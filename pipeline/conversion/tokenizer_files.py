"""What belongs to a model beside its weights: the files of its tokenizer, and the ids that end a text."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.tokenizers.reading import read_tokenizer
from pipeline.shared.errors import ConversionError, DataError

logger = logging.getLogger(__name__)

TOKENIZER_FOLDER = "tokenizer"
GENERATION_NAME = "generation_config.json"
# One of these is the tokenizer itself.
_MAIN_FILES = ("tokenizer.json", "tokenizer.model")
_FILES = (
    *_MAIN_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    GENERATION_NAME,
)


def main_file(folder: Path) -> str | None:
    """Return the name of the tokenizer in a folder; None where there is none."""
    return next((name for name in _MAIN_FILES if (folder / name).is_file()), None)


def find_tokenizer(folder: Path) -> list[Path]:
    """Return the files of a tokenizer and of generation that are in a folder.

    Raises:
        ConversionError: there is no tokenizer.
    """
    if main_file(folder) is None:
        raise ConversionError(
            f"{folder} must hold a tokenizer ({' or '.join(_MAIN_FILES)}), but holds none; put it there, or "
            "say --no-tokenizer to convert the weights alone"
        )
    return [folder / name for name in _FILES if (folder / name).is_file()]


def copy_files(files: list[Path], folder: Path) -> None:
    """Copy files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def note_token_ids(folder: Path, token_ids: Mapping[str, Any]) -> None:
    """Write the ids that end a text and the like where the source has no file for them."""
    if not (folder / GENERATION_NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"_from_model_config": True, **token_ids}, indent=2)
        (folder / GENERATION_NAME).write_text(f"{text}\n", encoding="utf-8")


def read_token_ids(folder: Path) -> dict[str, Any]:
    """Return ``bos_token_id`` and the like: those written down, else the tokenizer's end of documents."""
    path = folder / GENERATION_NAME
    if not path.is_file():
        return _end_of_documents(folder)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in values.items() if key.endswith("_token_id")}
    except (ValueError, AttributeError) as error:
        raise ConversionError(
            f"{path} must be JSON settings by name, but cannot be read ({error})"
        ) from error


def _end_of_documents(folder: Path) -> dict[str, Any]:
    for name in _MAIN_FILES:
        if (folder / name).is_file():
            try:
                return {"eos_token_id": read_tokenizer(folder / name).eod_id}
            except DataError as error:
                logger.warning("no token is known to end a text, so generate goes on behind it: %s", error)
                return {}
    return {}
