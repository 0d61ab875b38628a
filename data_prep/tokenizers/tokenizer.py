"""What a tokenizer does, and loading one of either kind."""

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

    @staticmethod
    def load(path: Path, *, eod_token: str | None = None) -> "Tokenizer":
        """Read a sentencepiece model or a Hugging Face ``tokenizer.json``, whichever the file is.

        Args:
            path: the file.
            eod_token: name of the token that ends documents, for a ``tokenizer.json``. Without it the
                ``eos_token`` of the ``special_tokens_map.json`` beside the file is taken.
        Raises:
            DataError: the file does not exist or is no usable tokenizer.
        """
        try:
            content = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise DataError(
                f"the tokenizer {path} must be a file, but is not; make one with `megaponder tokenizer train`"
            ) from error
        # each kind is loaded only where it is used: both bring a library
        if content.lstrip().startswith(b"{"):
            from data_prep.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer

            return HuggingFaceTokenizer(
                content, eod_token=eod_token or special_eod_token(path), name=str(path)
            )
        from data_prep.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

        if eod_token is not None:
            raise DataError(
                f"--eod-token is for a tokenizer.json, but {path} is a sentencepiece model, which names its "
                "own end-of-sequence piece; leave it out"
            )
        return SentencePieceTokenizer(content, name=str(path))

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
