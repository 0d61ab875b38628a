"""What a tokenizer of either kind does."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import TokenizerKind

TOKENIZER_NAME = "tokenizer.model"
TOKENIZER_NAMES: dict[TokenizerKind, str] = {"sentencepiece": TOKENIZER_NAME, "huggingface": "tokenizer.json"}


class Tokenizer(ABC):
    """Text to token ids and back; ids are below ``vocab_size``, ``eod_id`` is never made from text."""

    kind: TokenizerKind
    vocab_size: int
    eod_id: int

    def __init__(self, content: bytes) -> None:
        """Take the bytes of the tokenizer's file."""
        self.sha256 = hashlib.sha256(content).hexdigest()

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
