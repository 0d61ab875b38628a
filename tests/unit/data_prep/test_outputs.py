"""Outputs that cannot be written, limits on lost files, and leftovers of interrupted commands."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.conversion import convert
from data_prep.inputs.documents import TextFiles
from data_prep.inputs.finding import survey_files
from data_prep.inputs.rejections import LOST_NAME, SKIPPED_NAME
from data_prep.manifest import load_manifest
from data_prep.output import output_errors
from data_prep.progress import describe_inputs
from data_prep.run import prepare
from data_prep.tokenizers.tokenizer_training import TokenizerTraining, train_tokenizer
from pipeline.shared.errors import DataError
from pipeline.shared.exit_codes import ExitCode
from tests.support.corpus import build_request, prepare_here
from tests.unit.data_prep.conftest import Prepared
from tests.unit.data_prep.inputs.test_records import json_lines


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (command, place)
        for command in ("prepare", "pairs", "convert", "tokenizer")
        for place in ("file", "file/inside", "n" * 300, "link")
        # A file is what this command writes.
        if (command, place) != ("tokenizer", "file")
    ],
)
def test_an_output_that_cannot_be_written_is_one_error(
    prepared: Prepared, tmp_path: Path, command: str, place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "link").symlink_to("link")
    output = tmp_path / place
    training = TokenizerTraining(source=prepared.source, output=output, vocab_size=320)
    runs: dict[str, Callable[[], object]] = {
        "convert": lambda: convert(prepared.folder, output, stored_as="megatron"),
        "tokenizer": lambda: train_tokenizer(training),
        "prepare": lambda: prepare_here(prepared.source, prepared.tokenizer, output),
        "pairs": lambda: prepare_here(prepared.source, prepared.tokenizer, output, stored_as="megatron"),
    }
    with pytest.raises(DataError) as caught:
        runs[command]()
    assert caught.value.exit_code == ExitCode.USAGE
    assert (tmp_path / "file").read_text() == "in the way"


def test_errors_of_other_files_are_not_those_of_the_output(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), output_errors(tmp_path / "output"):
        raise PermissionError(13, "refused", "/somewhere/else/entirely")


@pytest.mark.parametrize("stored_as", ["webdataset", "megatron"])
def test_lost_files_have_a_limit_of_their_own_and_are_listed(
    prepared: Prepared, tmp_path: Path, stored_as: str
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "good.jsonl").write_bytes(json_lines(["words"] * 30))
    for number in range(3):
        (folder / f"bad_{number}.jsonl").write_bytes(b'{"content": "words"}\n' * 20)
    (folder / "notes.md").write_text("other")
    request = build_request(prepared.source, prepared.tokenizer, output, stored_as=stored_as)
    request = request.model_copy(update={"source": TextFiles(inputs=(str(folder),)), "max_bad_files": 2})
    with pytest.raises(DataError, match="--max-bad-files"):
        prepare(request.model_copy(update={"max_bad_records": 10_000}))
    allowed = request.model_copy(update={"max_bad_files": 3, "max_bad_records": 0})
    for _ in range(2):
        manifest = prepare(allowed)
        assert [file.path for file in manifest.lost] == [f"bad_{number}.jsonl" for number in range(3)]
        assert manifest.rejected == ()
        assert len((output / LOST_NAME).read_text().splitlines()) == 3
        assert "notes.md" in (output / SKIPPED_NAME).read_text()
    with pytest.raises(DataError, match="--max-bad-files"):
        prepare(request)
    lines = describe_inputs(load_manifest(output), output, survey_files(allowed.source))
    assert [line.partition(":")[0] for line in lines] == ["read", "skipped", "lost"]
    assert str(output / LOST_NAME) in lines[-1]


@pytest.mark.parametrize("stored_as", ["webdataset", "megatron"])
def test_leftovers_of_interrupted_writes_are_removed(
    prepared: Prepared, tmp_path: Path, stored_as: str
) -> None:
    names = [
        ".manifest.json.tmp-01",
        ".progress.jsonl.tmp-02",
        ".tokenizer.model.tmp-03",
        ".train-000000.tar.tmp-04",
        ".heldout.bin.tmp-05",
        ".rejected.jsonl.tmp-06",
    ]
    for name in [*names, ".mine.tmp-07"]:
        (tmp_path / name).write_bytes(b"half")
    prepare_here(prepared.source, prepared.tokenizer, tmp_path, stored_as=stored_as)
    assert [path for path in os.listdir(tmp_path) if ".tmp-" in path] == [".mine.tmp-07"]  # noqa: PTH208
