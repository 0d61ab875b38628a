"""What a tokenizer of either kind does."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import TokenizerKind
from pipeline.shared.errors import DataError

TOKENIZER_NAME = "tokenizer.model"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"
TOKENIZER_NAMES: dict[TokenizerKind, str] = {"sentencepiece": TOKENIZER_NAME, "huggingface": "tokenizer.json"}


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
    def token_name(self, token: int) -> str:
        """Return the name of a token by its id, as in the tokenizer's file."""


def special_eod_token(path: Path) -> str | None:
    """Return the ``eos_token`` in the ``special_tokens_map.json`` of a tokenizer's folder, or None."""
    try:
        found = json.loads((path.parent / SPECIAL_TOKENS_NAME).read_bytes()).get("eos_token")
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, AttributeError) as error:
        raise DataError(f"{path.parent / SPECIAL_TOKENS_NAME} must be a JSON object, but is not") from error
    name = found.get("content") if isinstance(found, dict) else found
    return name if isinstance(name, str) else None


def special_tokens_map(eod_token: str) -> bytes:
    """Return the content of the file that :func:`special_eod_token` reads."""
    return (json.dumps({"eos_token": eod_token}, indent=1) + "\n").encode()
