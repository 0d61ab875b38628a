"""What a tokenizer of either kind does."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.inputs.texts import without_mark
from data_prep.manifest import TokenizerKind
from data_prep.regular_files import read_regular_file
from pipeline.shared.errors import DataError

logger = logging.getLogger(__name__)

TOKENIZER_NAME = "tokenizer.model"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"
CONFIG_NAME = "tokenizer_config.json"
LARGEST_CONFIG_BYTES = 64 << 20
TOKENIZER_NAMES: dict[TokenizerKind, str] = {"sentencepiece": TOKENIZER_NAME, "huggingface": "tokenizer.json"}


class EncodingError(DataError):
    """A tokenizer cannot turn a text into tokens; ``reason`` is what its library reports."""

    def __init__(self, tokenizer: str, reason: str) -> None:
        """Take the name of the tokenizer."""
        super().__init__(
            f"a text must consist of words that {tokenizer} knows, but one does not: {reason}; use a "
            "tokenizer that has a token for unknown words, or change the text"
        )
        self.reason = reason

    def __reduce__(self) -> tuple[type["EncodingError"], tuple[str, str]]:
        return EncodingError, ("the tokenizer", self.reason)


class Tokenizer(ABC):
    """A tokenizer: ids are below ``vocab_size``, and no text produces ``eod_id``."""

    kind: TokenizerKind
    vocab_size: int
    eod_id: int

    def __init__(self, content: bytes) -> None:
        """Take the bytes of the tokenizer's file."""
        self.sha256 = hashlib.sha256(content).hexdigest()

    @abstractmethod
    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the token ids of one text, without the end-of-document id."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of token ids, without end-of-document ids; half characters become U+FFFD."""

    @abstractmethod
    def pieces(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """Return one string per token for display: spaces unchanged, bytes and reserved ids by name."""

    @abstractmethod
    def texts(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """Return the part of the text for each token; for ids of a text, joined they are that text.

        A character of several byte tokens belongs to the last of them; a character that the last token leaves
        incomplete becomes U+FFFD.
        """

    @abstractmethod
    def special_id(self, token: str) -> int:
        """Return the id of a special token by its name.

        Raises:
            DataError: there is no such token, or text can produce it.
        """

    @abstractmethod
    def names_of_no_text(self) -> Sequence[str]:
        """Return strings that other implementations of the tokenizer may not take for ordinary text."""

    @abstractmethod
    def token_name(self, token: int) -> str:
        """Return the name of a token by its id, as in the tokenizer's file."""


def special_eod_token(path: Path) -> str | None:
    """Return the ``eos_token`` that the files in a tokenizer's folder name, or None.

    It is in ``special_tokens_map.json``; newer versions of transformers write ``tokenizer_config.json`` only.
    """
    names = {file: _eos_token(path.parent / file) for file in (SPECIAL_TOKENS_NAME, CONFIG_NAME)}
    found = {file: name for file, name in names.items() if name is not None}
    if not found:
        return None
    file, chosen = next(iter(found.items()))
    if len(set(found.values())) > 1:
        logger.warning(
            "the files beside %s name different eos_tokens: %s; documents end with %s, of %s",
            path,
            ", ".join(f"{name} in {other}" for other, name in found.items()),
            chosen,
            file,
        )
    return chosen


def _eos_token(path: Path) -> str | None:
    try:
        content = without_mark(read_regular_file(path, largest_bytes=LARGEST_CONFIG_BYTES))
        found = json.loads(content).get("eos_token")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} must be a JSON object, but is not; correct or remove it") from error
    name = found.get("content") if isinstance(found, dict) else found
    return name if isinstance(name, str) else None


def special_tokens_map(eod_token: str) -> bytes:
    """Return the content of the file that :func:`special_eod_token` reads."""
    return (json.dumps({"eos_token": eod_token}, indent=1) + "\n").encode()
