import json
from pathlib import Path

import pytest

from data_prep.inputs.documents import TextFiles
from data_prep.plan import TRAIN, split_of
from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.tokenizer_training import TokenizerTraining, train_tokenizer
from pipeline.shared.errors import DataError
from tests.unit.data_prep.conftest import Prepared


def build_training(prepared: Prepared, output: Path, **changes: object) -> TokenizerTraining:
    fields = {"source": prepared.source, "output": output, "vocab_size": 320, "heldout_fraction": 0.3}
    return TokenizerTraining.model_validate({**fields, **changes})


def test_equal_text_and_settings_give_equal_bytes(prepared: Prepared, tmp_path: Path) -> None:
    result = train_tokenizer(build_training(prepared, tmp_path / "again.model"))
    assert result.was_trained
    assert (tmp_path / "again.model").read_bytes() == prepared.tokenizer.read_bytes()


def test_a_tokenizer_that_is_up_to_date_is_not_trained_again(prepared: Prepared, tmp_path: Path) -> None:
    output = tmp_path / "t.model"
    assert train_tokenizer(build_training(prepared, output)).was_trained
    assert not train_tokenizer(build_training(prepared, output)).was_trained
    assert train_tokenizer(build_training(prepared, output, vocab_size=330)).was_trained
    output.write_bytes(b"damaged")
    assert train_tokenizer(build_training(prepared, output)).was_trained


def test_unigram_models_can_be_trained(prepared: Prepared, tmp_path: Path) -> None:
    result = train_tokenizer(
        build_training(prepared, tmp_path / "t.model", model_type="unigram", vocab_size=300)
    )
    assert result.vocab_size == 300


def test_a_vocabulary_too_large_for_the_text_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="50000"):
        train_tokenizer(build_training(prepared, tmp_path / "t.model", vocab_size=50_000))
    assert list(tmp_path.iterdir()) == []


def test_records_of_one_file_are_sampled_without_the_held_out_ones(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = range(1, 2001)
    # every line has 29 bytes, so that its position tells its number
    train = [n for n in numbers if split_of(f"a.jsonl:{29 * (n - 1)}", 0.3) == TRAIN]
    words = {n: "train words" if n in set(train) else "ZZZZZZZZZZZ" for n in numbers}
    lines = [json.dumps({"text": f"{words[n]} {n % 7}"}).ljust(28) for n in numbers]
    assert {len(line) for line in lines} == {28}
    lines[train[0] - 1] = "broken".ljust(28)
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = TextFiles(inputs=(str(tmp_path / "a.jsonl"),))
    with caplog.at_level("INFO"):
        train_tokenizer(build_training(prepared, tmp_path / "t.model", source=source, vocab_size=280))
    assert f"a.jsonl:{train[0]}: " in caplog.text
    tokenizer = read_tokenizer(tmp_path / "t.model")
    assert tokenizer.pieces(tokenizer.encode("Z")) == ["<0x5A>"]
    assert tokenizer.pieces(tokenizer.encode("t")) == ["t"]


def test_leftovers_of_an_interrupted_training_are_removed(prepared: Prepared, tmp_path: Path) -> None:
    for name in (".t.model.tmp-0123ab", ".t.model.json.tmp-0123ab"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".other.model.tmp-0123ab").write_bytes(b"of another output")
    train_tokenizer(build_training(prepared, tmp_path / "t.model"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "t.model",
        "t.model.json",
        ".other.model.tmp-0123ab",
    }


def test_lost_files_and_an_output_that_is_an_input_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "text"}\n')
    (tmp_path / "b.txt").write_text("words " * 1000)
    source = TextFiles(inputs=(str(tmp_path),))
    training = build_training(
        prepared, tmp_path / "t.model", source=source, vocab_size=270, heldout_fraction=0
    )
    with pytest.raises(DataError, match=r"a\.jsonl"):
        train_tokenizer(training)
    assert train_tokenizer(training.model_copy(update={"max_bad_files": 1})).was_trained
    with pytest.raises(DataError, match="input"):
        train_tokenizer(training.model_copy(update={"output": tmp_path / "b.txt"}))
