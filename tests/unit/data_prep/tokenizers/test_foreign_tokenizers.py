"""Tokenizer files with faults: one clear error each, or a bad record; and who names the end token."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from data_prep.inputs.documents import TextFiles
from data_prep.manifest import LARGEST_VOCABULARY
from data_prep.run import prepare
from data_prep.storage.shard_reader import iterate_documents
from data_prep.tokenizers import reading
from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.tokenizer import EncodingError
from pipeline.shared.errors import DataError
from tests.support.corpus import build_request
from tests.unit.data_prep.conftest import Prepared

EOD = "</s>"
WORDS = {"red": 0, "blue": 1, "green": 2, EOD: 3}


def write_words(path: Path, *, vocab: dict[str, int] = WORDS, eod_id: int = 3) -> Path:
    """Write a tokenizer of whole words without one for unknown words."""
    added = {"id": eod_id, "content": EOD, "special": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [{**added, **flags}],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }
    path.write_text(json.dumps(content))
    return path


def test_a_text_with_unknown_words_is_a_bad_record(prepared: Prepared, tmp_path: Path) -> None:
    tokenizer = write_words(tmp_path / "words.json")
    long_text = "red " * 600_000
    lines = ["red blue", "black", "green", f"{long_text}black", f"{long_text}", "blue"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    request = build_request(prepared.source, tokenizer, tmp_path / "shards", eod_token=EOD)
    source = TextFiles(inputs=(str(tmp_path / "a.jsonl"),))
    settings = request.settings.model_copy(
        update={"heldout_fraction": 0.0, "member_tokens": 100_000, "shard_text_bytes": 1 << 30}
    )
    manifest = prepare(request.model_copy(update={"source": source, "settings": settings}))
    assert [record.line for record in manifest.rejected] == [2, 4]
    documents = [
        document.tolist()
        for shard in manifest.shards
        for document in iterate_documents(tmp_path / "shards" / shard.name, 3)
    ]
    assert [len(document) for document in documents] == [3, 2, 600_001, 2]
    assert documents[-1] == [1, 3]
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"text": line}) + "\n" for line in lines if "black" not in line)
    )
    again = prepare(
        request.model_copy(
            update={
                "source": TextFiles(inputs=(str(tmp_path / "b.jsonl"),)),
                "settings": settings,
                "output": tmp_path / "again",
            }
        )
    )
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in manifest.shards]
    with pytest.raises(EncodingError):
        read_tokenizer(tokenizer, eod_token=EOD).encode("black")


@pytest.mark.parametrize("value", [EOD, {"content": EOD, "special": True}])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_end_token_is_taken_from_the_configuration(tmp_path: Path, value: object, mark: str) -> None:
    tokenizer = write_words(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(mark + json.dumps({"eos_token": value}))
    assert read_tokenizer(tokenizer).eod_id == 3
    (tmp_path / "special_tokens_map.json").write_text(mark + json.dumps({"unk_token": "<unk>"}))
    assert read_tokenizer(tokenizer).eod_id == 3


def test_of_two_end_tokens_it_is_said_which_one_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = write_words(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<other>"}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": EOD}))
    with caplog.at_level(logging.WARNING):
        assert read_tokenizer(tokenizer).eod_id == 3
    assert "<other>" in caplog.text


def test_a_byte_order_mark_is_no_part_of_a_tokenizer(tmp_path: Path) -> None:
    plain = write_words(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    first, second = (read_tokenizer(tmp_path / name, eod_token=EOD) for name in ("a.json", "b.json"))
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("eod_id", [LARGEST_VOCABULARY, 4_000_000_000, 5_000_000_000])
def test_an_id_that_no_model_has_a_row_for_is_refused(tmp_path: Path, eod_id: int) -> None:
    tokenizer = write_words(tmp_path / "a.json", vocab={**WORDS, EOD: eod_id}, eod_id=eod_id)
    with pytest.raises(DataError, match=r"a\.json"):
        read_tokenizer(tokenizer, eod_token=EOD)


def test_what_is_no_plain_file_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe.json", Path("/dev/zero"), tmp_path / "folder", tmp_path / "absent"):
        with pytest.raises(DataError, match=path.name):
            read_tokenizer(path)
    monkeypatch.setattr(reading, "LARGEST_TOKENIZER_BYTES", 100)
    with pytest.raises(DataError, match="100"):
        read_tokenizer(write_words(tmp_path / "a.json"))
    os.mkfifo(tmp_path / "special_tokens_map.json")
    monkeypatch.setattr(reading, "LARGEST_TOKENIZER_BYTES", 10_000)
    with pytest.raises(DataError, match="special_tokens_map"):
        read_tokenizer(tmp_path / "a.json")


@pytest.mark.parametrize(
    "content",
    [b"", b"{" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"\x0a\xff\xff\xff", b"{}", b"\x00" * 100],
)
def test_a_file_that_is_no_tokenizer_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json"):
        read_tokenizer(tmp_path / "a.json", eod_token=EOD if content.startswith(b"{") else None)


def test_a_configuration_that_is_nested_deeply_is_one_error(tmp_path: Path) -> None:
    tokenizer = write_words(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="tokenizer_config"):
        read_tokenizer(tokenizer)
