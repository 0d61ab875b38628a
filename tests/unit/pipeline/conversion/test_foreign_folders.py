"""Folders of models and tokenizers as somebody else might have made them."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_prep.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from pipeline.checkpoint.identity import StoredTokenizer
from pipeline.conversion.from_hf import ImportOptions, from_hf
from pipeline.conversion.from_hf import _all_or_nothing as new_checkpoint
from pipeline.conversion.hf_config import read_config_json
from pipeline.conversion.hf_weights import HuggingFaceWeights
from pipeline.conversion.to_hf import _all_or_nothing
from pipeline.conversion.tokenizer_files import begin_as_trained, find_tokenizer
from pipeline.shared.errors import ConversionError
from tests.unit.data_prep.tokenizers.test_sentencepiece_json import model as sentencepiece_model

LLAMA = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "tie_word_embeddings": False,
}


def write(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    save_file({"model.embed_tokens.weight": torch.zeros(32, 16)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"hidden_size": 10**12},
        {"vocab_size": 10**15},
        {"intermediate_size": 10**18, "num_hidden_layers": 10**6},
    ],
)
def test_absurd_sizes_are_refused_at_once(tmp_path: Path, changes: dict[str, int]) -> None:
    source, started = write(tmp_path / "source", **changes), time.monotonic()
    with pytest.raises(Exception, match=r".") as found:
        from_hf(source, tmp_path / "new", ImportOptions(needs_tokenizer=False))
    assert found.type.__mro__[1].__name__ in ("UserError", "ValueError"), found.type
    assert not (tmp_path / "new").exists()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("content", ["[" * 10**5, "9" * 5000, "[]", "\ufeff{", '{"a": ' + "9" * 5000 + "}"])
def test_nonsense_in_a_config_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConversionError, match=r"config\.json"):
        read_config_json(tmp_path / "config.json")


def test_a_config_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConversionError, match=r"config\.json"):
        read_config_json(tmp_path / "config.json")


@pytest.mark.parametrize("length", [2**63, 2**40, 5])
def test_a_header_of_safetensors_that_lies_about_its_length_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}" + b"\0" * 100)
    with pytest.raises(ConversionError, match=r"model\.safetensors"):
        HuggingFaceWeights(tmp_path)


@pytest.mark.parametrize("end", [10**15, 2])
def test_a_header_of_safetensors_that_lies_about_a_shape_is_refused(tmp_path: Path, end: int) -> None:
    header = {"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, end]}}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
    with pytest.raises(ConversionError, match=r"model\.safetensors"):
        HuggingFaceWeights(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_a_tokenizer_whose_settings_name_code_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / name).write_text(json.dumps({"auto_map": {"AutoTokenizer": "someone/else--code.Class"}}))
    with pytest.raises(ConversionError, match="auto_map"):
        find_tokenizer(tmp_path)


def test_an_export_has_the_modes_that_the_umask_gives(tmp_path: Path) -> None:
    for mask, expected in ((0o077, 0o700), (0o022, 0o755)):
        before = os.umask(mask)
        try:
            with _all_or_nothing(tmp_path / f"{mask}") as partial:
                (partial / "file").write_text("")
        finally:
            os.umask(before)
        folder = tmp_path / f"{mask}"
        assert folder.stat().st_mode & 0o777 == expected
        assert (folder / "file").stat().st_mode & 0o777 == expected & 0o666


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "new.0123456789ab.partial").mkdir()
    (tmp_path / "newer.0123456789ab.partial").mkdir()
    with _all_or_nothing(tmp_path / "new"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "newer.0123456789ab.partial"]


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
}


@pytest.mark.parametrize("bos_id", [256, None])
@pytest.mark.parametrize("processor", [None, TEMPLATE, {"type": "ByteLevel"}])
def test_an_exported_tokenizer_begins_texts_as_training_began_documents(
    tmp_path: Path, bos_id: int | None, processor: object
) -> None:
    transformers = pytest.importorskip("transformers")
    letters = {chr(code): code for code in range(33, 127)}
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": name, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for number, name in ((256, "<s>"), (257, "</s>"))
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": processor
        if processor != {"type": "ByteLevel"}
        else {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "model": {"type": "BPE", "vocab": letters, "merges": []},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": bos_id is None})
    ) if processor == TEMPLATE else None
    trained = StoredTokenizer(
        kind="huggingface",
        file="tokenizer.json",
        sha256="",
        vocab_size=258,
        eod_id=257,
        eod_token="</s>",
        bos_id=bos_id,
    )
    begin_as_trained(tmp_path, trained, max_tokens=64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    begin = [] if bos_id is None else [bos_id]
    assert tokenizer("lamp")["input_ids"] == [*begin, *(ord(letter) for letter in "lamp")]
    assert tokenizer.eos_token == "</s>"


@pytest.mark.parametrize("bos_id", [None, 0])
def test_a_sentencepiece_model_gets_a_tokenizer_json_that_transformers_reads(
    tmp_path: Path, bos_id: int | None
) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    own = SentencePieceTokenizer(sentencepiece_model())
    trained = StoredTokenizer(
        kind="sentencepiece",
        file="tokenizer.model",
        sha256=own.sha256,
        vocab_size=own.vocab_size,
        eod_id=own.eod_id,
        eod_token=None,
        bos_id=bos_id,
    )
    begin_as_trained(tmp_path, trained, max_tokens=64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    begin = [] if bos_id is None else [bos_id]
    text = "  two lamps,\n\t12 \u2581 \u6f22 <0x41>"
    assert tokenizer(text)["input_ids"] == [*begin, *own.encode(text).tolist()]
    assert tokenizer.decode(own.encode(text).tolist()) == text
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", own.eod_id)


def test_a_sentencepiece_model_that_changes_texts_is_exported_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = sentencepiece_model.__wrapped__("bpe", add_dummy_prefix=True)
    (tmp_path / "tokenizer.model").write_bytes(model)
    trained = StoredTokenizer(
        kind="sentencepiece",
        file="tokenizer.model",
        sha256="",
        vocab_size=340,
        eod_id=0,
        eod_token=None,
        bos_id=None,
    )
    begin_as_trained(tmp_path, trained, max_tokens=64)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


@pytest.mark.parametrize(
    ("inside", "is_taken"),
    [
        (["iter_0000000.partial"], True),
        (["iter_0000000.partial", "tokenizer"], True),
        (["tokenizer"], False),
        (["iter_0000000.partial", "iter_0000000"], False),
        (["iter_0000000.partial", "notes"], False),
    ],
)
def test_what_a_killed_import_left_is_replaced_and_nothing_else(
    tmp_path: Path, inside: list[str], is_taken: bool
) -> None:
    directory = tmp_path / "new"
    for name in inside:
        (directory / name).mkdir(parents=True)
    if is_taken:
        with new_checkpoint(directory) as partial:
            assert [path.name for path in directory.iterdir()] == [partial.name]
        return
    with pytest.raises(ConversionError, match="new"), new_checkpoint(directory):
        pass
    assert sorted(path.name for path in directory.iterdir()) == sorted(inside)
