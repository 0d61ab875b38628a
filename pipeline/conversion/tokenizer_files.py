"""The tokenizer files of a model, and the token ids that end a text."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.tokenizers.reading import read_tokenizer
from pipeline.shared.errors import ConversionError, DataError
from pipeline.shared.foreign_files import read_json_object, regular_size

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
# Those in which transformers looks for code to run.
_SETTINGS = ("tokenizer_config.json", GENERATION_NAME)
_NAMING_CODE = {"auto_map", "custom_generate", "trust_remote_code"}
_MOST_BYTES = 2**28


def main_file(folder: Path) -> str | None:
    """Return the name of the tokenizer file in a folder, or None."""
    return next((name for name in _MAIN_FILES if (folder / name).is_file()), None)


def find_tokenizer(folder: Path) -> list[Path]:
    """Return the tokenizer and generation files in a folder.

    Raises:
        ConversionError: there is no tokenizer.
    """
    if main_file(folder) is None:
        raise ConversionError(
            f"{folder} must hold a tokenizer ({' or '.join(_MAIN_FILES)}), but holds none; put one there, or "
            "convert only the weights with --no-tokenizer"
        )
    files = [folder / name for name in _FILES if (folder / name).is_file()]
    for file in files:
        _refuse_code(file)
    return files


def _refuse_code(file: Path) -> None:
    """Refuse settings that name code: whoever loads the copy with transformers would run it.

    Raises:
        ConversionError: they do, or the file is absurdly large or cannot be read.
    """
    try:
        if regular_size(file) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES} bytes")
        values = read_json_object(file) if file.name in _SETTINGS else {}
    except (OSError, ValueError) as error:
        raise ConversionError(f"{file} must be a file of a tokenizer, but is not ({error})") from error
    named = sorted(_NAMING_CODE & values.keys())
    if named:
        raise ConversionError(
            f"{file} must not name code of its own, but has {', '.join(named)}; remove it there if the "
            "tokenizer works without, or convert only the weights with --no-tokenizer"
        )


def copy_files(files: list[Path], folder: Path) -> None:
    """Copy files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def note_token_ids(folder: Path, token_ids: Mapping[str, Any]) -> None:
    """Write token ids such as the end of texts, unless the source came with a file for them."""
    if not (folder / GENERATION_NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"_from_model_config": True, **token_ids}, indent=2)
        (folder / GENERATION_NAME).write_text(f"{text}\n", encoding="utf-8")


def read_token_ids(folder: Path) -> dict[str, Any]:
    """Return ``bos_token_id`` and the like from the generation file, else from the tokenizer."""
    path = folder / GENERATION_NAME
    if not path.is_file():
        return _end_of_documents(folder)
    try:
        values = read_json_object(path)
        return {key: value for key, value in values.items() if key.endswith("_token_id")}
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{path} must be JSON settings by name, but cannot be read ({error})"
        ) from error


def _end_of_documents(folder: Path) -> dict[str, Any]:
    for name in _MAIN_FILES:
        if (folder / name).is_file():
            try:
                return {"eos_token_id": read_tokenizer(folder / name).eod_id}
            except DataError as error:
                logger.warning(
                    "the token that ends a text is unknown, so generate does not stop there: %s", error
                )
                return {}
    return {}
