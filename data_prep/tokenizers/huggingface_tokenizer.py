"""A tokenizer from a Hugging Face ``tokenizer.json``."""

from collections.abc import Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers.decoders import DecodeStream

from data_prep.manifest import LARGEST_VOCABULARY
from data_prep.tokenizers.tokenizer import (
    CONFIG_NAME,
    SPECIAL_TOKENS_NAME,
    EncodingError,
    Tokenizer,
)
from pipeline.shared.errors import DataError

HALF_CHARACTER = "\ufffd"


class HuggingFaceTokenizer(Tokenizer):
    """The tokenizer of a ``tokenizer.json``, without the special tokens that its templates add."""

    kind = "huggingface"

    def __init__(self, content: bytes, *, eod_token: str | None, name: str = "tokenizer") -> None:
        """Take the bytes of a ``tokenizer.json`` and the name of the token that ends documents.

        Raises:
            DataError: they are not a tokenizer, or the token is not one of its special tokens.
        """
        super().__init__(content)
        self._name = name
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except BaseException as error:  # the library raises Exception itself, and panics with a BaseException
            _let_interrupts_pass(error)
            raise DataError(
                f"{name} must be a Hugging Face tokenizer.json, but cannot be read as one: {error}"
            ) from error
        # The name of a special token in a text is ordinary text.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Ids may have gaps.
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not 0 < self.vocab_size <= LARGEST_VOCABULARY:
            raise DataError(
                f"the ids of {name} must be in 0..{LARGEST_VOCABULARY - 1}, because a model has a row for "
                f"each, but the largest is {self.vocab_size - 1}; number its pieces from 0"
            )
        if eod_token is None:
            raise DataError(
                f"{name} must have a token that ends documents, but names none; give --eod-token, one of "
                f"{self._special_names()}, or add a {SPECIAL_TOKENS_NAME} or {CONFIG_NAME} with an "
                "eos_token to its folder"
            )
        self.eod_id = self.special_id(eod_token)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the token ids of one text, without the end-of-document id."""
        # The fast variant does not compute the offsets of tokens, a quarter of the time.
        try:
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        except BaseException as error:
            _let_interrupts_pass(error)
            raise EncodingError(self._name, f"{error}") from error
        return np.array(encoding.ids, dtype=np.int32)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of token ids, without special tokens; half characters become U+FFFD."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)

    def pieces(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """Return one string per token for display: its text, or its name if it has none."""
        return [self._piece(int(token)) for token in ids]

    def texts(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """Return the part of the text for each token; joined, they are :meth:`decode` of all."""
        stream = DecodeStream(skip_special_tokens=True)
        texts = [stream.step(self._tokenizer, int(token)) or "" for token in ids]
        if texts:
            # The stream holds back the bytes of an incomplete character.
            texts[-1] += self.decode(ids)[len("".join(texts)) :]
        return texts

    def special_id(self, token: str) -> int:
        """Return the id of a special token by its name.

        Raises:
            DataError: there is no such token, or text can produce it.
        """
        specials = self._specials()
        if token not in specials:
            raise DataError(
                f"the token {token!r} must be a special token of {self._name}, but these are "
                f"{self._special_names()}; choose one of them"
            )
        return specials[token]

    def names_of_no_text(self) -> Sequence[str]:
        """Return the names of special tokens, which are ordinary text in a text."""
        return tuple(self._specials())

    def token_name(self, token: int) -> str:
        """Return the name of a token by its id."""
        return self._tokenizer.id_to_token(token) or f"<{token}>"

    def _piece(self, token: int) -> str:
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        return self.token_name(token) if not text or HALF_CHARACTER in text else text

    def _specials(self) -> dict[str, int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    def _special_names(self) -> str:
        return ", ".join(self._specials()) or "(none)"


def _let_interrupts_pass(error: BaseException) -> None:
    """Raise an error again that is not the library's."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
