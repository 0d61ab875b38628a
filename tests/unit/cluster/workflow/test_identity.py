import os
from pathlib import Path

from cluster.workflow.identity import (
    identity_of_checkpoint,
    identity_of_file,
    identity_of_folder,
    identity_of_text,
    identity_of_tokens,
    text_of,
)
from pipeline.config.workflow_section import PrepareStep
from tests.support.corpus import prepare_here, train_small_tokenizer, write_corpus


def test_a_missing_input_has_no_identity(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert identity_of_file(absent) is None
    assert identity_of_folder(absent) is None
    assert identity_of_tokens(absent) is None
    assert identity_of_checkpoint(absent) is None


def test_tokens_prepared_again_from_touched_text_are_the_same_and_text_is_not(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "text")
    tokenizer = train_small_tokenizer(source, tmp_path / "t.model")
    text = text_of(PrepareStep(command="prepare", inputs=(str(source.root),), tokenizer=tokenizer))
    prepare_here(source, tokenizer, tmp_path / "data")
    before = identity_of_text(text), identity_of_tokens(tmp_path / "data")
    document = next(source.root.rglob("*.txt"))
    os.utime(document, (1, 1))
    prepare_here(source, tokenizer, tmp_path / "data", overwrite=True)
    assert identity_of_text(text) != before[0]
    assert identity_of_tokens(tmp_path / "data") == before[1] is not None
    longest = max(source.root.rglob("*.txt"), key=lambda path: path.stat().st_size)
    longest.write_text("other words")
    prepare_here(source, tokenizer, tmp_path / "data", overwrite=True)
    assert identity_of_tokens(tmp_path / "data") != before[1]


def test_tokens_without_a_manifest_are_identified_by_their_files(tmp_path: Path) -> None:
    prefix = tmp_path / "pair"
    prefix.with_suffix(".bin").write_bytes(b"tokens")
    before = identity_of_tokens(prefix)
    assert before is not None
    prefix.with_suffix(".bin").write_bytes(b"more tokens")
    assert identity_of_tokens(prefix) != before
    assert identity_of_tokens(tmp_path) == identity_of_tokens(prefix)


def test_a_folder_is_identified_by_the_content_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    before = identity_of_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    assert identity_of_folder(tmp_path) != before
