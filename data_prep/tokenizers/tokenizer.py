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
    """Text to token ids and back; ids are below ``vocab_size``, ``eod_id`` is never made from text."""

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
        """Token ids of one text, without the end-of-document id."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Text of token ids; end-of-document ids leave no trace, half characters become U+FFFD."""

    @abstractmethod
    def pieces(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """One string per token for display: spaces as they are, bytes by a name, reserved ids by name."""

    @abstractmethod
    def texts(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """The part of the text each token stands for; for ids made from a text, joined they are that text.

        A character spelled in several byte tokens belongs to the last of them; a character that the last
        token leaves unfinished becomes U+FFFD.
        """

    @abstractmethod
    def special_id(self, token: str) -> int:
        """Id of a special token by its name.

        Raises:
            DataError: there is no such token, or text can make it.
        """

    @abstractmethod
    def token_name(self, token: int) -> str:
        """Name of a token by its id, as the tokenizer's file has it."""


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
