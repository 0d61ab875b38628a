"""What computes tokens: gigatoken gives the ids of the tokenizer's own library, or the run ends."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_prep.inputs.documents import TextFolder
from data_prep.manifest import MANIFEST_NAME
from data_prep.tokenizers import encoding
from data_prep.tokenizers.encoding import NUM_FIRST_CHECKED, CheckedEncoder, load_encoder, resolve_backend
from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.tokenizer import Tokenizer
from data_prep.tokenizers.tokenizer_training import TokenizerTraining, train_tokenizer
from pipeline.shared.errors import DataError
from tests.support.corpus import WORDS, prepare_here
from tests.unit.data_prep.conftest import Prepared

EOD = "<|endoftext|>"
Encode = Callable[[str], NDArray[np.int32]]
needs_gigatoken = pytest.mark.skipif(find_spec("gigatoken") is None, reason="needs the extra fast")


@pytest.fixture
def tokenizer(prepared: Prepared) -> Tokenizer:
    return read_tokenizer(prepared.tokenizer)


def wrong_after(num_right: int, encode: Encode) -> Encode:
    """Return an encoder that adds a token to every text after the first ones."""
    calls: list[str] = []

    def encode_wrongly(text: str) -> NDArray[np.int32]:
        calls.append(text)
        ids = encode(text)
        return ids if len(calls) <= num_right else np.append(ids, np.int32(5))

    return encode_wrongly


def encode_often(encoder: CheckedEncoder, text: str) -> None:
    for _ in range(3000):
        encoder.encode(text)


def test_a_wrong_token_of_the_first_text_ends_the_task_with_the_text(tokenizer: Tokenizer) -> None:
    encoder = CheckedEncoder(tokenizer, lambda: wrong_after(0, tokenizer.encode))

    with pytest.raises(DataError, match=r"def value"):
        encoder.encode("def value")


def test_wrong_tokens_of_later_texts_are_found_by_chance_in_every_task(tokenizer: Tokenizer) -> None:
    encoder = CheckedEncoder(tokenizer, lambda: wrong_after(NUM_FIRST_CHECKED, tokenizer.encode))
    for _ in range(NUM_FIRST_CHECKED):
        encoder.encode("def value")

    with pytest.raises(DataError):
        encode_often(encoder, "def value")
    encoder.begin_task("train-000001.tar")
    with pytest.raises(DataError):
        encoder.encode("def value")


def test_names_of_special_tokens_are_left_to_the_tokenizer(tokenizer: Tokenizer) -> None:
    encoder = CheckedEncoder(tokenizer, lambda: wrong_after(0, tokenizer.encode))

    for text in ("a <|endoftext|> b", "\u2581", "<0x41>", "<unk>"):
        np.testing.assert_array_equal(encoder.encode(text), tokenizer.encode(text))


def test_what_gigatoken_cannot_encode_is_left_to_the_tokenizer(tokenizer: Tokenizer) -> None:
    def refuse(text: str) -> NDArray[np.int32]:
        raise ValueError(text)

    encoder = CheckedEncoder(tokenizer, lambda: refuse)

    np.testing.assert_array_equal(encoder.encode("def value"), tokenizer.encode("def value"))


def test_an_encoder_that_has_seen_much_text_is_replaced(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "CHARACTERS_OF_AN_ENCODER", 100)
    loads: list[Encode] = []

    def load() -> Encode:
        loads.append(tokenizer.encode)
        return tokenizer.encode

    encoder = CheckedEncoder(tokenizer, load)
    for _ in range(30):
        encoder.encode("return 10 ")

    assert len(loads) == 1 + 30 * 10 // 110


def test_without_the_package_auto_is_native_and_its_name_is_refused(
    prepared: Prepared, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(encoding, "PACKAGE", "a_package_that_nobody_has")

    assert resolve_backend(prepared.tokenizer, "auto") == "native"
    assert load_encoder(prepared.tokenizer, tokenizer, "native") is None
    with pytest.raises(DataError, match=r"\[fast\]"):
        load_encoder(prepared.tokenizer, tokenizer, "gigatoken")
    with pytest.raises(DataError, match=r"\[fast\]"):
        prepare_here(prepared.source, prepared.tokenizer, tmp_path / "out", tokenizer_backend="gigatoken")
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


@needs_gigatoken
def test_the_shards_are_the_same_bytes(prepared: Prepared, tmp_path: Path) -> None:
    for backend in ("native", "gigatoken"):
        prepare_here(prepared.source, prepared.tokenizer, tmp_path / backend, tokenizer_backend=backend)

    native, fast = (
        {path.name: path.read_bytes() for path in (tmp_path / backend).iterdir() if path.is_file()}
        for backend in ("native", "gigatoken")
    )
    assert native == fast
    assert len(native) > 3


@needs_gigatoken
@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_random_texts_have_the_ids_of_the_tokenizer(prepared: Prepared, tmp_path: Path, kind: str) -> None:
    file = prepared.tokenizer if kind == "sentencepiece" else train_byte_level(tmp_path / "tokenizer.json")
    eod_token = None if kind == "sentencepiece" else EOD
    tokenizer = read_tokenizer(file, eod_token=eod_token)
    assert resolve_backend(file, "gigatoken", eod_token=eod_token) == "gigatoken"
    encoder = load_encoder(file, tokenizer, "gigatoken")
    assert encoder is not None
    random = Random(3)
    texts = ["".join(chr(random.randint(1, 0xD7FF)) for _ in range(200)) for _ in range(50)]
    texts += [
        tokenizer.decode([random.randrange(tokenizer.vocab_size) for _ in range(200)]) for _ in range(200)
    ]

    assert encoder.differing(texts) is None
    for text in (f"a {EOD} b", "self <pad> value", "<unk>"):
        np.testing.assert_array_equal(encoder.encode(text), tokenizer.encode(text))


@needs_gigatoken
def test_an_unsupported_model_falls_back_with_a_notice_and_is_refused_by_name(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unigram = train_unigram(prepared.source, tmp_path / "unigram.model")

    with caplog.at_level(logging.WARNING):
        assert resolve_backend(unigram, "auto") == "native"
    assert str(unigram) in caplog.text
    with pytest.raises(DataError, match=r"unigram\.model"):
        resolve_backend(unigram, "gigatoken")


def train_unigram(source: TextFolder, output: Path) -> Path:
    training = TokenizerTraining(
        source=source, output=output, vocab_size=300, heldout_fraction=0.3, model_type="unigram"
    )
    return train_tokenizer(training).path


def train_byte_level(output: Path) -> Path:
    """Train a byte-level BPE of 300 ids, as most published tokenizers are."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", EOD], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    trained.save(str(output))
    return output
