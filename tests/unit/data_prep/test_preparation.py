import fcntl
import re
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from data_prep.inputs.documents import TextFolder
from data_prep.inputs.finding import find_files
from data_prep.inputs.rejections import REJECTED_NAME
from data_prep.journal import JOURNAL_NAME, load_journal
from data_prep.manifest import MANIFEST_NAME, PrepareSettings, RejectedRecord, ShardManifest, load_manifest
from data_prep.plan import split_of
from data_prep.preparation import execute_here, prepare_shards
from data_prep.progress import PrepareProgress
from data_prep.run import prepare
from data_prep.storage.shard_reader import iterate_documents
from data_prep.tasks import ShardTask, TaskReport
from data_prep.tokenizers.reading import read_tokenizer
from pipeline.shared.errors import DataError
from pipeline.shared.folder_lock import LOCK_NAME
from tests.support.corpus import (
    EMPTY,
    NOT_UTF8,
    SETTINGS,
    build_request,
    prepare_here,
    read_text,
    train_small_tokenizer,
    write_corpus,
)
from tests.unit.data_prep.conftest import Prepared


class CountingExecutor:
    """Executes here, remembers which shards it made, and can die after some or go backwards."""

    def __init__(self, *, die_after: int | None = None, backwards: bool = False) -> None:
        self.die_after = die_after
        self.backwards = backwards
        self.made: list[str] = []

    def __call__(self, tasks: Sequence[ShardTask]) -> Generator[TaskReport, None, None]:
        for report in execute_here(tasks[::-1] if self.backwards else tasks):
            if self.die_after is not None and len(self.made) == self.die_after:
                raise KeyboardInterrupt
            self.made.append(report.entry.name)
            yield report


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def run(prepared: Prepared, output: Path, executor: CountingExecutor, **changes: object) -> ShardManifest:
    request = build_request(prepared.source, prepared.tokenizer, output).model_copy(update=changes)
    return prepare_shards(request, executor, PrepareProgress())


def test_shards_hold_every_document_once_in_order(prepared: Prepared) -> None:
    tokenizer = read_tokenizer(prepared.tokenizer)
    for split in prepared.manifest.splits:
        paths = [
            file.path
            for file in find_files(prepared.source)
            if split_of(file.path, 0.3) == split and file.path not in (NOT_UTF8, EMPTY)
        ]
        texts = [
            tokenizer.decode(document[:-1])
            for shard in prepared.manifest.split_shards(split)
            for document in iterate_documents(prepared.folder / shard.name, tokenizer.eod_id)
        ]
        assert texts == [read_text(prepared.source, path) for path in paths]


def test_files_without_a_document_are_counted_and_listed(prepared: Prepared) -> None:
    (rejected,) = prepared.manifest.rejected
    assert rejected.path == NOT_UTF8
    assert "UTF-8 at byte 3" in rejected.reason
    assert sum(shard.num_empty_documents for shard in prepared.manifest.shards) == 1


def test_rejected_records_are_listed_beside_the_manifest(prepared: Prepared) -> None:
    lines = (prepared.folder / REJECTED_NAME).read_text().splitlines()
    assert [RejectedRecord.model_validate_json(line) for line in lines] == [*prepared.manifest.rejected]


def test_the_result_does_not_depend_on_the_order_in_which_shards_are_finished(
    prepared: Prepared, tmp_path: Path
) -> None:
    run(prepared, tmp_path, CountingExecutor(backwards=True))
    assert folder_bytes(tmp_path) == folder_bytes(prepared.folder)


@pytest.mark.parametrize("die_after", [0, 1, 4])
def test_an_interrupted_run_resumes(prepared: Prepared, tmp_path: Path, die_after: int) -> None:
    first, second = CountingExecutor(die_after=die_after), CountingExecutor()
    with pytest.raises(KeyboardInterrupt):
        run(prepared, tmp_path, first)
    with pytest.raises(DataError, match=r"manifest\.json"):
        load_manifest(tmp_path)
    manifest = run(prepared, tmp_path, second)
    assert first.made + second.made == [shard.name for shard in manifest.shards]
    assert folder_bytes(tmp_path) == folder_bytes(prepared.folder)


def test_a_journal_line_that_was_being_written_counts_as_not_done(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(prepared, tmp_path, CountingExecutor(die_after=3))
    journal = tmp_path / JOURNAL_NAME
    journal.write_bytes(journal.read_bytes()[:-10])
    executor = CountingExecutor()
    run(prepared, tmp_path, executor)
    assert len(executor.made) == len(prepared.manifest.shards) - 2
    assert folder_bytes(tmp_path) == folder_bytes(prepared.folder)


def test_leftovers_of_a_killed_worker_are_removed(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / ".train-000000.tar.tmp-123").write_bytes(b"half")
    (tmp_path / "notes.txt").write_bytes(b"the user's own")
    run(prepared, tmp_path, CountingExecutor())
    assert folder_bytes(tmp_path) == folder_bytes(prepared.folder) | {"notes.txt": b"the user's own"}


def test_a_finished_folder_is_left_alone(prepared: Prepared, tmp_path: Path) -> None:
    run(prepared, tmp_path, CountingExecutor())
    before = (tmp_path / MANIFEST_NAME).stat().st_mtime_ns
    again = CountingExecutor()
    assert run(prepared, tmp_path, again) == load_manifest(tmp_path)
    assert again.made == []
    assert (tmp_path / MANIFEST_NAME).stat().st_mtime_ns == before


def test_a_shard_that_is_missing_or_cut_is_made_again(prepared: Prepared, tmp_path: Path) -> None:
    run(prepared, tmp_path, CountingExecutor())
    (tmp_path / "train-000001.tar").unlink()
    (tmp_path / "train-000002.tar").write_bytes(b"cut")
    again = CountingExecutor()
    run(prepared, tmp_path, again)
    assert again.made == ["train-000001.tar", "train-000002.tar"]
    assert folder_bytes(tmp_path) == folder_bytes(prepared.folder)


def test_a_changed_setting_is_refused_by_name(prepared: Prepared, tmp_path: Path) -> None:
    run(prepared, tmp_path, CountingExecutor())
    before = folder_bytes(tmp_path)
    settings = SETTINGS.model_copy(update={"member_tokens": 600})
    with pytest.raises(DataError, match=r"settings.member_tokens was 700 and is 600.*--overwrite"):
        run(prepared, tmp_path, CountingExecutor(), settings=settings)
    assert folder_bytes(tmp_path) == before


def test_a_changed_tokenizer_is_refused_also_in_an_unfinished_folder(
    prepared: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(prepared, tmp_path / "shards", CountingExecutor(die_after=2))
    other = prepared.tokenizer.read_bytes() + b"\x9a\x01\x00"
    (tmp_path / "other.model").write_bytes(other)
    with pytest.raises(DataError, match=r"tokenizer\.sha256"):
        run(prepared, tmp_path / "shards", CountingExecutor(), tokenizer=tmp_path / "other.model")


def test_overwrite_replaces_shards_of_other_settings_entirely(prepared: Prepared, tmp_path: Path) -> None:
    small = PrepareSettings(heldout_fraction=0.3, shard_text_bytes=2000, member_tokens=100)
    run(prepared, tmp_path, CountingExecutor(), settings=small)
    executor = CountingExecutor()
    run(prepared, tmp_path, executor, overwrite=True)
    assert len(executor.made) == len(prepared.manifest.shards)
    assert folder_bytes(tmp_path) == folder_bytes(prepared.folder)


def test_overwrite_keeps_shards_whose_own_text_did_not_change(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "text")
    tokenizer = train_small_tokenizer(source, tmp_path / "tokenizer.model")
    before = prepare_here(source, tokenizer, tmp_path / "shards")
    last = before.split_shards("train")[-1].inputs.last_file
    (source.root / last).write_text("changed")
    with pytest.raises(DataError, match=r"inputs.num_bytes was"):
        prepare_here(source, tokenizer, tmp_path / "shards")
    executor = CountingExecutor()
    request = build_request(source, tokenizer, tmp_path / "shards", overwrite=True)
    prepare_shards(request, executor, PrepareProgress())
    assert executor.made == [before.split_shards("train")[-1].name]
    prepare_here(source, tokenizer, tmp_path / "fresh")
    assert folder_bytes(tmp_path / "shards") == folder_bytes(tmp_path / "fresh")


def test_an_unreadable_journal_is_refused_and_can_be_overwritten(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_text("{}\n")
    with pytest.raises(DataError, match=r"progress\.jsonl"):
        load_journal(tmp_path)
    with pytest.raises(DataError, match="--overwrite"):
        run(prepared, tmp_path, CountingExecutor())
    run(prepared, tmp_path, CountingExecutor(), overwrite=True)
    assert folder_bytes(tmp_path) == folder_bytes(prepared.folder)


def test_two_commands_do_not_write_one_folder(prepared: Prepared, tmp_path: Path) -> None:
    # As another process holds it.
    with (tmp_path / LOCK_NAME).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=re.escape(str(tmp_path))):
            prepare_here(prepared.source, prepared.tokenizer, tmp_path)
    prepare_here(prepared.source, prepared.tokenizer, tmp_path)


def test_a_missing_tokenizer_leaves_the_folder_empty(prepared: Prepared, tmp_path: Path) -> None:
    request = build_request(prepared.source, tmp_path / "absent.model", tmp_path / "shards")
    with pytest.raises(DataError, match="megaponder tokenizer train"):
        prepare(request)
    assert not (tmp_path / "shards" / JOURNAL_NAME).exists()


@pytest.mark.parametrize("content", [b"\xff", b""])
@pytest.mark.parametrize("stored_as", ["webdataset", "megatron"])
def test_a_result_without_a_token_is_no_success(
    prepared: Prepared, tmp_path: Path, content: bytes, stored_as: str
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(content)
    source = TextFolder(root=tmp_path / "text")
    for _ in range(2):
        with pytest.raises(DataError, match="no token"):
            prepare_here(source, prepared.tokenizer, tmp_path / "shards", stored_as=stored_as)
    assert not (tmp_path / "shards" / MANIFEST_NAME).exists()
