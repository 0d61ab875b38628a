"""Whole preparations of files with many documents each, mixed with files that are one."""

import gzip
import itertools
import json
from collections.abc import Generator, Sequence
from pathlib import Path

import fsspec
import pytest

from data_prep.inputs.documents import TextFiles
from data_prep.inputs.rejections import REJECTED_NAME
from data_prep.manifest import ReadSettings, ShardManifest
from data_prep.plan import split_of
from data_prep.preparation import Executor, PrepareRequest, execute_here, prepare_shards
from data_prep.progress import PrepareProgress
from data_prep.run import prepare
from data_prep.storage.shard_reader import iterate_documents
from data_prep.tasks import ShardTask, StoppedTask, TaskReport
from data_prep.tokenizers.reading import read_tokenizer
from pipeline.shared.errors import DataError
from tests.support.corpus import build_request
from tests.unit.data_prep.conftest import Prepared

NUM_RECORDS = 60


def record(number: int) -> str:
    return f"record {number} " + "value " * (number % 17)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    lines = [json.dumps({"content": record(number)}) for number in range(NUM_RECORDS)]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "b.jsonl").write_text("\n".join(lines[:20]) + '\nbroken\n{"content": ""}\n')
    (folder / "c.txt").write_text("one document\nof two lines")
    return folder


def prepare_content(prepared: Prepared, inputs: str, output: Path, **fields: object) -> ShardManifest:
    source = {"inputs": [inputs], "reading": {"text_field": "content", **fields}}
    request = build_request(prepared.source, prepared.tokenizer, output)
    return prepare(request.model_copy(update={"source": TextFiles.model_validate(source)}))


def texts(prepared: Prepared, folder: Path, manifest: ShardManifest, split: str) -> list[str]:
    tokenizer = read_tokenizer(prepared.tokenizer)
    return [
        tokenizer.decode(document)
        for shard in manifest.split_shards(split)
        for document in iterate_documents(folder / shard.name, tokenizer.eod_id)
    ]


def test_every_record_is_once_in_the_split_of_its_name(
    prepared: Prepared, inputs: Path, tmp_path: Path
) -> None:
    manifest = prepare_content(prepared, str(inputs), tmp_path / "shards")
    names = {f"a.jsonl.gz:{n + 1}": record(n) for n in range(NUM_RECORDS)}
    starts = [0, *itertools.accumulate(len(json.dumps({"content": record(n)})) + 1 for n in range(20))]
    names |= {f"b.jsonl:{start}": record(n) for n, start in enumerate(starts[:20])}
    names["c.txt"] = "one document\nof two lines"
    for split in ("train", "heldout"):
        expected = [text for name, text in names.items() if split_of(name, 0.3) == split]
        assert texts(prepared, tmp_path / "shards", manifest, split) == expected
        assert len(expected) > 5


def test_bad_and_empty_records_are_counted_once_though_files_are_read_for_each_split(
    prepared: Prepared, inputs: Path, tmp_path: Path
) -> None:
    manifest = prepare_content(prepared, str(inputs), tmp_path / "shards")
    assert [record.place for record in manifest.rejected] == ["b.jsonl:21"]
    assert sum(shard.num_empty_documents for shard in manifest.shards) == 1


def test_a_url_gives_the_shards_of_the_folder(prepared: Prepared, inputs: Path, tmp_path: Path) -> None:
    fsspec.filesystem("memory").put(str(inputs), "/mixed", recursive=True)
    local = prepare_content(prepared, str(inputs), tmp_path / "local")
    for number, url in enumerate((f"file://{inputs}", "memory://mixed")):
        remote = prepare_content(prepared, url, tmp_path / f"{number}")
        assert [shard.sha256 for shard in remote.shards] == [shard.sha256 for shard in local.shards]


def test_lines_become_documents_when_asked(prepared: Prepared, inputs: Path, tmp_path: Path) -> None:
    manifest = prepare_content(prepared, str(inputs / "c.txt"), tmp_path / "shards", lines=True)
    found = [
        text for split in manifest.splits for text in texts(prepared, tmp_path / "shards", manifest, split)
    ]
    assert sorted(found) == ["of two lines", "one document"]


def test_another_text_field_is_a_changed_setting(prepared: Prepared, inputs: Path, tmp_path: Path) -> None:
    prepare_content(prepared, str(inputs), tmp_path / "shards")
    with pytest.raises(ValueError, match=r"reading.text_field was content and is text"):
        prepare_content(prepared, str(inputs), tmp_path / "shards", text_field="text")


@pytest.fixture
def bad_inputs(tmp_path: Path) -> Path:
    """Twelve files of twenty records, of which one in each is broken."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for number in range(12):
        lines = [json.dumps({"content": record(n)}) for n in range(20)]
        lines[number] = "broken"
        (folder / f"{number:02d}.jsonl").write_text("\n".join(lines))
    return folder


def request_of(prepared: Prepared, folder: Path, output: Path, **changes: object) -> PrepareRequest:
    source = TextFiles(inputs=(str(folder),), reading=ReadSettings(text_field="content"))
    request = build_request(prepared.source, prepared.tokenizer, output)
    return request.model_copy(update={"source": source, **changes})


def backwards(tasks: Sequence[ShardTask]) -> Generator[TaskReport | StoppedTask, None, None]:
    return execute_here(tasks[::-1])


@pytest.mark.parametrize("execute", [execute_here, backwards])
def test_one_bad_record_too_many_stops_the_run_and_a_higher_limit_resumes_it(
    prepared: Prepared, bad_inputs: Path, tmp_path: Path, execute: Executor
) -> None:
    request = request_of(prepared, bad_inputs, tmp_path / "shards", max_bad_records=11)
    with pytest.raises(DataError, match=r"11 .*12 .*--max-bad-records"):
        prepare_shards(request, execute, PrepareProgress())
    assert len((tmp_path / "shards" / REJECTED_NAME).read_text().splitlines()) == 12
    manifest = prepare(request.model_copy(update={"max_bad_records": 12}))
    assert len(manifest.rejected) == 12
    fresh = prepare(request_of(prepared, bad_inputs, tmp_path / "fresh"))
    assert [shard.sha256 for shard in fresh.shards] == [shard.sha256 for shard in manifest.shards]
    with pytest.raises(DataError, match=" 11 "):
        prepare(request)


def test_a_wrong_field_stops_with_the_first_file(
    prepared: Prepared, bad_inputs: Path, tmp_path: Path
) -> None:
    source = TextFiles(inputs=(str(bad_inputs),))
    request = request_of(prepared, bad_inputs, tmp_path / "shards", source=source)
    with pytest.raises(DataError, match=r" 0 .*00\.jsonl: .*'content'.*--text-field"):
        prepare(request)
    assert not list((tmp_path / "shards").glob("*.tar*"))


def test_a_finished_folder_without_bad_records_has_no_list(
    prepared: Prepared, inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / REJECTED_NAME).write_text("of an earlier run")
    prepare_content(prepared, str(inputs / "c.txt"), tmp_path / "shards")
    assert not (tmp_path / "shards" / REJECTED_NAME).exists()
