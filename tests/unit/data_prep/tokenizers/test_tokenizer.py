from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.tokenizer import Tokenizer
from pipeline.shared.errors import DataError
from tests.support.corpus import VOCAB_SIZE
from tests.unit.data_prep.conftest import Prepared


@pytest.fixture(scope="module")
def tokenizer(prepared: Prepared) -> Tokenizer:
    return read_tokenizer(prepared.tokenizer)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example(text="  two spaces, a\ttab,\r\n a line \u2581 and \u2581\u2581 the space mark ")
@example(text="<|endoftext|> <unk> <0x0A> \x00 \ufffd \u2047 \U0001f600")
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.texts(ids)) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example(text="<|endoftext|>")
def test_text_never_makes_the_end_of_document_id(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.eod_id not in tokenizer.encode(text)


def test_ids_are_below_the_vocabulary_size(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert tokenizer.eod_id == 0
    assert tokenizer.encode("def \u6f22").max() < VOCAB_SIZE


def test_pieces_show_spaces_and_bytes_and_reserved_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.pieces([tokenizer.eod_id]) == ["<|endoftext|>"]
    assert tokenizer.pieces(tokenizer.encode("\n")) == ["<0x0A>"]
    assert "".join(tokenizer.pieces(tokenizer.encode("def value"))) == "def value"


def test_a_half_character_is_shown_as_a_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0001f600")
    assert tokenizer.texts(ids) == ["", "", "", "\U0001f600"]
    assert tokenizer.texts(ids[:2]) == ["", "\ufffd"]
    assert tokenizer.texts([]) == []


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(DataError, match="sentencepiece"):
        read_tokenizer(tmp_path / "junk.model")
    with pytest.raises(DataError, match="megaponder tokenizer train"):
        read_tokenizer(tmp_path / "absent.model")
