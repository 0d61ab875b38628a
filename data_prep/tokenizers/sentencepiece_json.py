"""A sentencepiece model as ``tokenizer.json``, for programs that read nothing else.

Only models that change no text before they split it, as those of ``megaponder tokenizer train``: their pieces
are written with real spaces, so that the sign by which sentencepiece represents a space stays an ordinary
character.
"""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as model_format

from data_prep.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer
from data_prep.tokenizers.sentencepiece_tokenizer import SPACE_MARK, SentencePieceTokenizer

__all__ = ["tokenizer_json_of"]

_NUM_PROBES = 4
_PROBE = (
    "The lamp, 12345 times:\n\n\tdef f(x):\r\n        return x  # na\u00efve \u6f22\u5b57 \U0001f600 e\u0301 "
    "\u2581 <0x41> <unk> <|endoftext|> </s>  "
)


def tokenizer_json_of(model: bytes) -> tuple[bytes, str]:
    """Return the content of a ``tokenizer.json`` that encodes as a sentencepiece model does.

    Args:
        model: bytes of the sentencepiece model.
    Returns:
        The content, and the name of the token that ends documents.
    Raises:
        ValueError: the model changes texts, has pieces of its user, or encodes some text otherwise.
    """
    proto = model_format.ModelProto()
    proto.ParseFromString(model)
    _check_is_plain(proto)
    own = SentencePieceTokenizer(model)
    end = own.token_name(own.eod_id)
    content = json.dumps(_content(proto), ensure_ascii=False).encode()
    other = HuggingFaceTokenizer(content, eod_token=end)
    for text in _probes(proto):
        if own.encode(text).tolist() != other.encode(text).tolist():
            raise ValueError(f"a tokenizer.json would encode {text[:40]!r}... otherwise")
    return content, end


def _check_is_plain(proto: Any) -> None:
    normalizer, kinds = proto.normalizer_spec, model_format.ModelProto.SentencePiece
    changes = {
        "add_dummy_prefix": normalizer.add_dummy_prefix,
        "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "a table of characters": bool(normalizer.precompiled_charsmap),
        "no byte_fallback": not proto.trainer_spec.byte_fallback,
        "pieces of its user": any(piece.type == kinds.USER_DEFINED for piece in proto.pieces),
        "another model than bpe or unigram": proto.trainer_spec.model_type
        not in (model_format.TrainerSpec.BPE, model_format.TrainerSpec.UNIGRAM),
    }
    found = [name for name, is_so in changes.items() if is_so]
    if found:
        raise ValueError(f"it has {', '.join(found)}")


def _content(proto: Any) -> dict[str, Any]:
    is_bpe = proto.trainer_spec.model_type == model_format.TrainerSpec.BPE
    control = model_format.ModelProto.SentencePiece.CONTROL
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": piece.piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, piece in enumerate(proto.pieces)
            if piece.type == control
        ],
        "normalizer": None,
        "pre_tokenizer": None if is_bpe else _cut_names(proto),
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": _bpe(proto) if is_bpe else _unigram(proto),
    }


def _bpe(proto: Any) -> dict[str, Any]:
    vocabulary = {_text(piece): number for number, piece in enumerate(proto.pieces)}
    reachable = {_text(piece) for piece in proto.pieces if _is_text(piece)}
    ranked = sorted(
        (piece for piece in proto.pieces if _is_text(piece)), key=lambda piece: piece.score, reverse=True
    )
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": _unknown(proto),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocabulary,
        # sentencepiece joins any two pieces that make one, the best one first.
        "merges": [pair for piece in ranked for pair in _splits(_text(piece), reachable)],
    }


def _splits(text: str, pieces: set[str]) -> Iterator[list[str]]:
    """Yield the ways to make a piece of two."""
    for end in range(1, len(text)):
        if text[:end] in pieces and text[end:] in pieces:
            yield [text[:end], text[end:]]


def _unigram(proto: Any) -> dict[str, Any]:
    kinds = model_format.ModelProto.SentencePiece
    return {
        "type": "Unigram",
        "unk_id": next(number for number, piece in enumerate(proto.pieces) if piece.type == kinds.UNKNOWN),
        "vocab": [[_text(piece), piece.score] for piece in proto.pieces],
        "byte_fallback": True,
    }


def _cut_names(proto: Any) -> dict[str, Any]:
    """Cut names of control and byte pieces behind their first letter: in a text they are not those pieces."""
    names = [piece.piece for piece in proto.pieces if not _is_text(piece)]
    rests: dict[str, list[str]] = {}
    for name in names:
        rests.setdefault(name[0], []).append(re.escape(name[1:]))
    pattern = "|".join(f"{re.escape(first)}(?=(?:{'|'.join(found)}))" for first, found in rests.items())
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }


def _text(piece: Any) -> str:
    text: str = piece.piece
    return text.replace(SPACE_MARK, " ") if _is_text(piece) else text


def _is_text(piece: Any) -> bool:
    return bool(piece.type == model_format.ModelProto.SentencePiece.NORMAL)


def _unknown(proto: Any) -> str:
    kinds = model_format.ModelProto.SentencePiece
    return next(str(piece.piece) for piece in proto.pieces if piece.type == kinds.UNKNOWN)


def _probes(proto: Any) -> Iterator[str]:
    """Yield texts with every piece, each of them in several surroundings."""
    yield _PROBE
    pieces = [_text(piece) for piece in proto.pieces if _is_text(piece)]
    order = random.Random(0)
    for _ in range(_NUM_PROBES):
        order.shuffle(pieces)
        yield "".join(pieces)
