import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_prep.inspection import Inspection, inspect_shards, length_bins, render_inspection
from data_prep.storage.shard_reader import iterate_documents
from tests.unit.data_prep.conftest import Prepared


@pytest.fixture
def folder(prepared: Prepared, tmp_path: Path) -> Path:
    return shutil.copytree(prepared.folder, tmp_path / "shards")


def render(inspection: Inspection) -> str:
    output = io.StringIO()
    Console(file=output, width=160).print(render_inspection(inspection))
    return output.getvalue()


def test_an_inspection_shows_totals_samples_and_rejected_files(prepared: Prepared) -> None:
    inspection = inspect_shards(prepared.folder, num_samples=2)
    first_file = prepared.manifest.split_shards("train")[0].inputs.first_file
    text = (prepared.source.root / first_file).read_text()
    assert len(inspection.samples) == 4
    assert text.startswith(inspection.samples[0].text)
    shown = render(inspection)
    assert f"{prepared.manifest.num_tokens('train'):,}" in shown
    assert "folder_1/latin.txt" in shown
    assert inspection.problems is None


def test_the_histogram_counts_every_document_in_a_bin_that_holds_its_length(prepared: Prepared) -> None:
    inspection = inspect_shards(prepared.folder)
    lengths = [
        len(document)
        for shard in prepared.manifest.shards
        for document in iterate_documents(prepared.folder / shard.name, 0)
    ]
    for each in inspection.lengths:
        assert each.num_documents == sum(each.first <= length <= each.last for length in lengths)
    assert sum(each.num_documents for each in inspection.lengths) == len(lengths)
    assert "129 to 256" in render(inspection)


def test_bins_double_and_begin_at_the_shortest_document() -> None:
    bins = length_bins(np.array([1, 2, 3, 4, 5, 8, 9]))
    assert [(each.first, each.last, each.num_documents) for each in bins] == [
        (1, 1, 1),
        (2, 2, 1),
        (3, 4, 2),
        (5, 8, 2),
        (9, 16, 1),
    ]
    assert [each.first for each in length_bins(np.array([700]))] == [513]
    assert length_bins(np.array([], dtype=np.int64)) == ()


def test_verification_passes_on_untouched_shards(folder: Path) -> None:
    assert inspect_shards(folder, verify=True).problems == ()


def test_verification_finds_every_kind_of_damage(folder: Path) -> None:
    flipped = bytearray((folder / "train-000000.tar").read_bytes())
    flipped[3000] ^= 1
    (folder / "train-000000.tar").write_bytes(flipped)
    (folder / "train-000001.tar").write_bytes(b"cut")
    (folder / "train-000002.tar").unlink()
    inspection = inspect_shards(folder, verify=True)
    assert inspection.problems is not None
    findings = {problem.shard: problem.finding for problem in inspection.problems}
    assert list(findings) == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert "sha256" in findings["train-000000.tar"]
    assert findings["train-000001.tar"].endswith(" 3")
    assert f"train-000002.tar: {findings['train-000002.tar']}" in render(inspection)
