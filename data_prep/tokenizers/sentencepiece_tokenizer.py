"""A lossless sentencepiece tokenizer."""

import codecs
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor

from data_prep.manifest import LARGEST_VOCABULARY
from data_prep.tokenizers.tokenizer import EncodingError, Tokenizer
from pipeline.shared.errors import DataError

# sentencepiece represents a space by this character, and would decode the character itself as a space.
SPACE_MARK = "\u2581"
# How the names of pieces begin that are single bytes.
_BYTE_PIECE = "<0x"


class SentencePieceTokenizer(Tokenizer):
    """The tokenizer of a sentencepiece model."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, *, name: str = "tokenizer") -> None:
        """Take the bytes of a sentencepiece model.

        Raises:
            DataError: they are not a sentencepiece model, or one without an end-of-sequence id.
        """
        super().__init__(model)
        self._name = name
        try:
            self._processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise DataError(
                f"{name} must be a sentencepiece model, but cannot be read as one; "
                "make one with `megaponder tokenizer train`"
            ) from error
        self.vocab_size = int(self._processor.get_piece_size())
        if not 0 < self.vocab_size <= LARGEST_VOCABULARY:
            raise DataError(
                f"{name} must have 1 to {LARGEST_VOCABULARY} pieces, but has {self.vocab_size}"
                "; train it again"
            )
        self.eod_id = int(self._processor.eos_id())
        if self.eod_id < 0:
            raise DataError(
                f"{name} must reserve an end-of-sequence id to end documents with, but has none; "
                "train it with eos_id set"
            )
        self._space_mark_ids = self._byte_ids(SPACE_MARK) if self._keeps_spaces() else None

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the token ids of one text, without the end-of-document id."""
        if self._space_mark_ids is not None and SPACE_MARK in text:
            return self._encode_space_marks(text, self._space_mark_ids)
        try:
            ids: NDArray[np.int32] = self._processor.encode(text, out_type="numpy")
        except Exception as error:  # the library has several classes
            raise EncodingError(self._name, f"{error}") from error
        return ids

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of token ids, without end-of-document ids; half characters become U+FFFD."""
        text: str = self._processor.decode([int(token) for token in ids])
        return text

    def pieces(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """Return one string per token for display: spaces unchanged, bytes as ``<0x0A>``, others by name."""
        return [self._processor.id_to_piece(int(token)).replace(SPACE_MARK, " ") for token in ids]

    def texts(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """Return the part of the text for each token; for ids of a text, joined they are that text.

        A character of several byte tokens belongs to the last of them; a character that the last token leaves
        incomplete becomes U+FFFD.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        last = len(ids) - 1
        return [decoder.decode(self._piece_bytes(int(token)), final=i == last) for i, token in enumerate(ids)]

    def special_id(self, token: str) -> int:
        """Return the id of a control piece by its name.

        Raises:
            DataError: there is no such piece, or text can produce it.
        """
        number = int(self._processor.piece_to_id(token))
        if not self._processor.is_control(number):
            raise DataError(
                f"the token {token!r} must be a control piece of {self._name}, but is not; choose another one"
            )
        return number

    def names_of_no_text(self) -> Sequence[str]:
        """Return the names of pieces that no text has, and the space mark, which is encoded here."""
        model = self._processor
        names = [
            model.id_to_piece(token)
            for token in range(self.vocab_size)
            if model.is_control(token) or model.is_unknown(token) or model.is_unused(token)
        ]
        return (SPACE_MARK, _BYTE_PIECE, *names)

    def token_name(self, token: int) -> str:
        """Return the piece of an id, as in the model."""
        piece: str = self._processor.id_to_piece(token)
        return piece

    def _piece_bytes(self, token: int) -> bytes:
        if self._processor.is_control(token):
            return b""
        piece: str = self._processor.id_to_piece(token)
        if self._processor.is_byte(token):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace(SPACE_MARK, " ").encode()

    def _keeps_spaces(self) -> bool:
        # Models with a dummy prefix or their own rules for spaces cannot tokenize a text in parts.
        probe = " a  b"
        return not "".join(self._processor.encode("a", out_type=str)).startswith(SPACE_MARK) and (
            self._processor.decode(self._processor.encode(probe)) == probe
        )

    def _byte_ids(self, character: str) -> NDArray[np.int32] | None:
        ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]
        return None if self._processor.unk_id() in ids else np.array(ids, dtype=np.int32)

    def _encode_space_marks(self, text: str, mark: NDArray[np.int32]) -> NDArray[np.int32]:
        first, *rest = text.split(SPACE_MARK)
        parts = [self._processor.encode(first, out_type="numpy")]
        for part in rest:
            parts += [mark, self._processor.encode(part, out_type="numpy")]
        return np.concatenate(parts).astype(np.int32)
