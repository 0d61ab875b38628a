"""The tokenizer files of a model, and the token ids that end a text."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.sentencepiece_json import tokenizer_json_of
from data_prep.tokenizers.tokenizer import SPECIAL_TOKENS_NAME, TOKENIZER_NAME, special_tokens_map
from pipeline.checkpoint.identity import StoredTokenizer
from pipeline.shared.errors import ConversionError, DataError
from pipeline.shared.files import file_sha256
from pipeline.shared.foreign_files import read_json_object, regular_size

logger = logging.getLogger(__name__)

TOKENIZER_FOLDER = "tokenizer"
GENERATION_NAME = "generation_config.json"
_CONFIG = "tokenizer_config.json"
# Words, numbers, spaces, code, and letters outside of ASCII.
_PROBE = "The lamp, 12345 times:\n\tdef f(x):\n        return x  # na\u00efve \u6f22\u5b57 \U0001f600"
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


def refuse_other_tokens(checkpoint: Path, trained: StoredTokenizer, folder: Path) -> None:
    """Check that a folder holds a tokenizer that encodes as the one of the training does.

    It may be the same one in another format, so that a text is compared where the files differ.

    Raises:
        ConversionError: it encodes the text otherwise.
    """
    name = main_file(folder)
    assert name is not None, "its files were found"
    if file_sha256(folder / name) == trained.sha256:
        return
    try:
        own = read_tokenizer(checkpoint / trained.file, eod_token=trained.eod_token)
        given = read_tokenizer(folder / name)
    except DataError as error:
        logger.warning(
            "%s could not be compared with the tokenizer of the training: %s", folder / name, error
        )
        return
    if own.encode(_PROBE).tolist() != given.encode(_PROBE).tolist():
        raise ConversionError(
            f"{checkpoint} was trained with the tokenizer {trained}, but {folder / name} (sha256 "
            f"{given.sha256[:12]}, {given.vocab_size:,} ids) encodes text otherwise; leave out --tokenizer "
            "to export the tokenizer of the training"
        )


def begin_as_trained(folder: Path, trained: StoredTokenizer, *, max_tokens: int) -> None:
    """Make transformers put before a text what the training put before a document, and nothing else.

    Args:
        folder: with the files of the tokenizer, which are changed.
        trained: the tokenizer of the training.
        max_tokens: that the model can see.
    """
    file = folder / "tokenizer.json"
    if not file.is_file() and not add_tokenizer_json(folder, max_tokens=max_tokens):
        logger.warning("the training put the id %s before each document", trained.bos_id)
        return
    eod_token = trained.eod_token
    name = None if trained.bos_id is None else _name_of(read_json_object(file), trained.bos_id)
    _set_template(file, name, trained.bos_id)
    path = folder / _CONFIG
    settings = read_json_object(path) if path.is_file() else _plain_settings(eod_token, max_tokens)
    changed: dict[str, Any] = {} if name is None else {"bos_token": name}
    changed |= {"add_bos_token": name is not None} if name or "add_bos_token" in settings else {}
    changed |= {"add_eos_token": False} if "add_eos_token" in settings else {}
    path.write_text(json.dumps(settings | changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if eod_token is not None and not (folder / SPECIAL_TOKENS_NAME).exists():
        (folder / SPECIAL_TOKENS_NAME).write_bytes(special_tokens_map(eod_token))


def add_tokenizer_json(folder: Path, *, max_tokens: int) -> bool:
    """Write a ``tokenizer.json`` that encodes as the sentencepiece model does, where there can be one.

    Args:
        folder: with a sentencepiece model; gets the settings of transformers too, unless it has them.
        max_tokens: that the model can see.
    Returns:
        Whether it was written; a warning says why not.
    """
    try:
        content, eod_token = tokenizer_json_of((folder / TOKENIZER_NAME).read_bytes())
    except (DataError, ValueError) as error:
        logger.warning(
            "no tokenizer.json is sure to encode as this sentencepiece model does: %s; encode texts with "
            "sentencepiece",
            error,
        )
        return False
    (folder / "tokenizer.json").write_bytes(content)
    if not (folder / _CONFIG).exists():
        settings = json.dumps(_plain_settings(eod_token, max_tokens), indent=2, ensure_ascii=False)
        (folder / _CONFIG).write_text(f"{settings}\n", encoding="utf-8")
    if not (folder / SPECIAL_TOKENS_NAME).exists():
        (folder / SPECIAL_TOKENS_NAME).write_bytes(special_tokens_map(eod_token))
    return True


def _plain_settings(eod_token: str | None, max_tokens: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eod_token,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
    }


def _set_template(path: Path, name: str | None, bos_id: int | None) -> None:
    """Replace what a ``tokenizer.json`` adds to a text."""
    content = read_json_object(path)
    processor = content.get("post_processor") or {}
    parts = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    # Those that add nothing to a text.
    kept = [part for part in parts if isinstance(part, dict) and part.get("type") == "ByteLevel"]
    if name is not None and bos_id is not None:
        kept.append(_template(name, bos_id))
    wanted = kept[0] if len(kept) == 1 else {"type": "Sequence", "processors": kept} if kept else None
    if wanted != content.get("post_processor"):
        text = json.dumps(content | {"post_processor": wanted}, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")


def _template(name: str, token: int) -> dict[str, Any]:
    """Return the step of a ``tokenizer.json`` that puts a token before each text."""
    begin = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": part, "type_id": number}} for number, part in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, second],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }


def _name_of(content: Mapping[str, Any], token: int) -> str:
    added = {one["id"]: one["content"] for one in content.get("added_tokens") or ()}
    if token in added:
        return str(added[token])
    vocabulary = content.get("model", {}).get("vocab", {})
    names = vocabulary.items() if isinstance(vocabulary, dict) else ()
    return next((str(name) for name, number in names if number == token), f"<{token}>")


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
