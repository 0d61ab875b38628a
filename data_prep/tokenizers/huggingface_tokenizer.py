"""A tokenizer from a Hugging Face ``tokenizer.json``."""

from collections.abc import Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers.decoders import DecodeStream

from data_prep.tokenizers.tokenizer import SPECIAL_TOKENS_NAME, Tokenizer
from pipeline.shared.errors import DataError

HALF_CHARACTER = "\ufffd"


class HuggingFaceTokenizer(Tokenizer):
    """Text to token ids and back as the file says, without the special tokens its templates add."""

    kind = "huggingface"

    def __init__(self, content: bytes, *, eod_token: str | None, name: str = "tokenizer") -> None:
        """Take the bytes of a ``tokenizer.json`` and the name of the token that ends documents.

        Raises:
            DataError: these are no tokenizer, or the token is not one of its special tokens.
        """
        super().__init__(content)
        self._name = name
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises this class itself
            raise DataError(
                f"{name} must be a Hugging Face tokenizer.json, but cannot be read as one: {error}"
            ) from error
        # the name of a special token in a text is text
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # ids may have gaps
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        if eod_token is None:
            raise DataError(
                f"{name} does not say which token ends documents; name it with --eod-token, one of "
                f"{self._special_names()}, or put a {SPECIAL_TOKENS_NAME} with an eos_token beside it"
            )
        self.eod_id = self.special_id(eod_token)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Token ids of one text, without the end-of-document id."""
        # The fast variant leaves out where each token lies in the text, a quarter of the time.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int32)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Text of token ids; special tokens leave no trace, half characters become U+FFFD."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)

    def pieces(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """One string per token for display: the text it makes alone, or its name where that is none."""
        return [self._piece(int(token)) for token in ids]

    def texts(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """The part of the text each token stands for; joined they are :meth:`decode` of all."""
        stream = DecodeStream(skip_special_tokens=True)
        texts = [stream.step(self._tokenizer, int(token)) or "" for token in ids]
        if texts:
            # what the stream holds back is a character that is not whole
            texts[-1] += self.decode(ids)[len("".join(texts)) :]
        return texts

    def special_id(self, token: str) -> int:
        """Id of a special token by its name.

        Raises:
            DataError: there is no such token, or text can make it.
        """
        specials = self._specials()
        if token not in specials:
            raise DataError(
                f"the token {token!r} must be a special token of {self._name}, but these are "
                f"{self._special_names()}; name one of them"
            )
        return specials[token]

    def token_name(self, token: int) -> str:
        """Name of a token by its id."""
        return self._tokenizer.id_to_token(token) or f"<{token}>"

    def _piece(self, token: int) -> str:
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        return self.token_name(token) if not text or HALF_CHARACTER in text else text

    def _specials(self) -> dict[str, int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    def _special_names(self) -> str:
        return ", ".join(self._specials()) or "(none)"
