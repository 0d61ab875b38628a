from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_prep.run import prepare
from data_prep.storage.shard_reader import iterate_documents
from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.tokenizer import Tokenizer
from pipeline.shared.errors import DataError
from tests.support.corpus import WORDS, build_request
from tests.unit.data_prep.conftest import Prepared

EOD, BOS = "<|endoftext|>", "<|begin|>"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 300 ids, as most published tokenizers are."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", EOD, BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    return read_tokenizer(file, eod_token=EOD)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example(text="  two spaces, a\ttab,\r\n a line \u2581 \ufffd \U0001f600")
@example(text=f"{EOD} and <pad>")
def test_any_text_comes_back_and_never_makes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.texts(ids)) == text
    assert not {0, tokenizer.eod_id, 2} & {*ids.tolist()}


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example(text=" ".join(WORDS))
def test_ids_are_those_of_the_librarys_plain_way(file: Path, tokenizer: Tokenizer, text: str) -> None:
    plain = tokenizers.Tokenizer.from_file(str(file))
    plain.encode_special_tokens = True
    assert tokenizer.encode(text).tolist() == plain.encode(text, add_special_tokens=False).ids


def test_ids_names_and_pieces_are_those_of_the_file(tokenizer: Tokenizer) -> None:
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.eod_id) == ("huggingface", 300, 1)
    assert tokenizer.pieces([1]) == [EOD]
    assert "".join(tokenizer.pieces(tokenizer.encode("def value"))) == "def value"
    assert tokenizer.texts(tokenizer.encode("\U0001f600")) == ["", "", "", "\U0001f600"]
    assert tokenizer.texts(tokenizer.encode("\U0001f600")[:2]) == ["", "\ufffd"]
    assert tokenizer.texts([]) == []


def test_the_end_of_document_must_be_named_by_someone(file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--eod-token, one of <pad>, <\|endoftext\|>"):
        read_tokenizer(file)
    with pytest.raises(DataError, match=r"'def'"):
        read_tokenizer(file, eod_token="def")
    copy = tmp_path / "tokenizer.json"
    copy.write_bytes(file.read_bytes())
    for names in ('{"eos_token": "<pad>"}', '{"eos_token": {"content": "<pad>"}}'):
        (tmp_path / "special_tokens_map.json").write_text(names)
        assert read_tokenizer(copy).eod_id == 0
    assert read_tokenizer(copy, eod_token=EOD).eod_id == 1
    (tmp_path / "special_tokens_map.json").write_text("[]")
    with pytest.raises(DataError, match=r"special_tokens_map\.json"):
        read_tokenizer(copy)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, prepared: Prepared) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path / "tokenizer.json", eod_token=EOD)
    with pytest.raises(DataError, match=r"--eod-token"):
        read_tokenizer(prepared.tokenizer, eod_token=EOD)
    with pytest.raises(DataError, match="control piece"):
        read_tokenizer(prepared.tokenizer).special_id("<s>")


@pytest.mark.parametrize("bos", [None, BOS])
def test_shards_begin_and_end_documents_with_the_named_tokens(
    prepared: Prepared, file: Path, tmp_path: Path, bos: str | None
) -> None:
    request = build_request(prepared.source, file, tmp_path / "shards", eod_token=EOD, bos_token=bos)
    manifest = prepare(request)
    entry = manifest.header.tokenizer
    # what a reader does who has only the folder
    tokenizer = read_tokenizer(tmp_path / "shards" / entry.file)
    assert (tokenizer.sha256, tokenizer.eod_id, entry.eod_id) == (entry.sha256, 1, 1)
    assert (entry.kind, entry.bos_id) == ("huggingface", bos and 2)
    shard = manifest.split_shards("train")[0]
    first = next(iterate_documents(tmp_path / "shards" / shard.name, 1)).tolist()
    text = (prepared.source.root / shard.inputs.first_file).read_bytes().decode()
    assert first == [*([2] if bos else []), *tokenizer.encode(text).tolist(), 1]
    with pytest.raises(DataError, match=r"tokenizer\.eod_id was 1 and is 0"):
        prepare(request.model_copy(update={"eod_token": "<pad>"}))
