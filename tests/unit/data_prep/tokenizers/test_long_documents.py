"""Token ids of texts in parts, against those of the whole text, for every kind of tokenizer."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from sentencepiece import SentencePieceTrainer
from tokenizers import models, normalizers, pre_tokenizers, trainers

from data_prep.tokenizers.long_documents import NEIGHBOURHOOD_CHARACTERS, SEARCH_CHARACTERS, encode_long
from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.tokenizer import Tokenizer
from tests.support.corpus import WORDS
from tests.unit.data_prep.conftest import Prepared

PART_CHARACTERS = 5000
KINDS = ["ours", "unigram", "dummy-prefix", "across-words", "byte-level", "gpt4-like", "metaspace"]
SEPARATORS = [" ", " ", " ", "  ", "\n    ", "\n", "\t", ";\n", "'s ", ", 123456 ", " \u00e9\u6f22\u2581 "]
# how GPT-4's tokenizer splits text before it looks for tokens
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def sample(num_words: int, seed: int = 3) -> str:
    generator = random.Random(seed)
    return "".join(generator.choice(WORDS) + generator.choice(SEPARATORS) for _ in range(num_words))


def sentencepiece_model(**settings: object) -> bytes:
    model = io.BytesIO()
    fields = {"vocab_size": 310, "byte_fallback": True, "eos_id": 0, "unk_id": 1, "bos_id": -1, **settings}
    lines = sample(3000).splitlines()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, num_threads=1, **fields
    )
    return model.getvalue()


def huggingface_file(kind: str) -> bytes:
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=kind == "metaspace"))
    if kind == "metaspace":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    elif kind == "gpt4-like":
        split = pre_tokenizers.Split(tokenizers.Regex(GPT4), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<eod>"], show_progress=False)
    lines = [line[:40] for line in sample(3000).splitlines()]
    tokenizer.train_from_iterator(lines, trainer)
    content: bytes = tokenizer.to_str().encode()
    return content


def make(kind: str, prepared: Prepared, path: Path) -> Tokenizer:
    match kind:
        case "ours":
            return read_tokenizer(prepared.tokenizer)
        case "unigram":
            path.write_bytes(sentencepiece_model(model_type="unigram", add_dummy_prefix=False))
        case "dummy-prefix":
            path.write_bytes(sentencepiece_model(model_type="bpe"))
        case "across-words":
            path.write_bytes(sentencepiece_model(model_type="bpe", split_by_whitespace=False))
        case _:
            path.write_bytes(huggingface_file(kind))
            return read_tokenizer(path, eod_token="<eod>")
    return read_tokenizer(path)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(
    request: pytest.FixtureRequest, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return make(request.param, prepared, tmp_path_factory.mktemp("tokenizer") / "tokenizer")


def in_parts(tokenizer: Tokenizer, text: str, chunk_characters: int) -> list[list[int]]:
    chunks = [text[start : start + chunk_characters] for start in range(0, len(text), chunk_characters)]
    parts = encode_long(tokenizer.encode, chunks, part_characters=PART_CHARACTERS)
    return [part.tolist() for part in parts]


def test_parts_have_the_tokens_of_the_whole(tokenizer: Tokenizer) -> None:
    for seed in range(2):
        text = sample(20_000, seed)
        parts = in_parts(tokenizer, text, 7000)
        assert len(parts) > 4
        assert np.concatenate(parts).tolist() == tokenizer.encode(text).tolist()


def test_how_a_text_arrives_leaves_no_trace(tokenizer: Tokenizer) -> None:
    text = sample(8_000)
    assert in_parts(tokenizer, text, 997) == in_parts(tokenizer, text, 10**9)


@pytest.mark.parametrize("unit", ["\u6f22\u5b57", "x", "ab;c", "\n", "\n\n  "])
def test_texts_without_single_spaces_are_whole_too(prepared: Prepared, unit: str) -> None:
    tokenizer = read_tokenizer(prepared.tokenizer)
    text = unit * (60_000 // len(unit))
    parts = in_parts(tokenizer, text, 7000)
    assert np.concatenate(parts).tolist() == tokenizer.encode(text).tolist()


def test_a_text_that_is_not_long_is_one_part(prepared: Prepared) -> None:
    tokenizer = read_tokenizer(prepared.tokenizer)
    text = sample(30_000)[: PART_CHARACTERS + SEARCH_CHARACTERS + NEIGHBOURHOOD_CHARACTERS]
    assert in_parts(tokenizer, text, 100) == [tokenizer.encode(text).tolist()]
    assert in_parts(tokenizer, "", 100) == []
