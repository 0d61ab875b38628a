"""A sentencepiece model and the tokenizer.json made of it encode every text alike."""

import functools
import io
import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer

from data_prep.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer
from data_prep.tokenizers.sentencepiece_json import tokenizer_json_of
from data_prep.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.unit.data_prep.tokenizers.test_long_documents import sample

# Those of `megaponder tokenizer train`.
PLAIN = {
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "byte_fallback": True,
    "split_digits": True,
    "eos_id": 0,
    "eos_piece": "<|endoftext|>",
    "unk_id": 1,
    "bos_id": -1,
    "pad_id": -1,
    "vocab_size": 340,
}
KINDS = ("bpe", "unigram")


def varied(num_words: int, seed: int = 4) -> str:
    """Return a text of made-up words, with all that a unigram model needs to find pieces."""
    generator = random.Random(seed)
    syllables = [first + second for first in "bdfgklmnprst" for second in ("a", "e", "in", "or", "u\u00ef")]
    words = ("".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(num_words))
    return "".join(word + generator.choice((" ", " ", "  ", "\n", ", ", " 12 ")) for word in words)


@functools.cache
def model(kind: str = "bpe", **changes: object) -> bytes:
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(varied(4000).splitlines()),
        model_writer=written,
        model_type=kind,
        minloglevel=2,
        num_threads=1,
        **(PLAIN | changes),
    )
    return written.getvalue()


@functools.cache
def both(kind: str) -> tuple[SentencePieceTokenizer, HuggingFaceTokenizer]:
    content, end = tokenizer_json_of(model(kind))
    return SentencePieceTokenizer(model(kind)), HuggingFaceTokenizer(content, eod_token=end)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("the of and\n 12\u2581", max_size=60))
@example(text="<|endoftext|> <unk> <0x0A> \x00 \ufffd \u2047 \U0001f600 e\u0301 \u2581\u2581")
@example(text=sample(300, seed=9))
def test_every_text_is_encoded_alike_and_comes_back(kind: str, text: str) -> None:
    own, other = both(kind)
    ids = own.encode(text).tolist()
    assert other.encode(text).tolist() == ids
    assert other.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_sizes_are_those_of_the_model(kind: str) -> None:
    own, other = both(kind)
    assert (other.vocab_size, other.eod_id) == (own.vocab_size, own.eod_id)
    content, end = tokenizer_json_of(model(kind))
    assert end == "<|endoftext|>"
    assert json.loads(content)["model"]["type"].lower() == kind


@pytest.mark.parametrize(
    "change",
    [
        {"add_dummy_prefix": True},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nfkc"},
        {"byte_fallback": False, "vocab_size": 100},
        {"user_defined_symbols": ["<user>"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_models_that_change_texts_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="has"):
        tokenizer_json_of(model.__wrapped__("bpe", **change))
