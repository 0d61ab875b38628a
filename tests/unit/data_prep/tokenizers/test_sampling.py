"""An even sample: bounded, without held-out text, and not filled by one document."""

import json
from pathlib import Path

import pytest

from data_prep.inputs.documents import TextFiles
from data_prep.inputs.finding import find_files
from data_prep.manifest import ReadSettings
from data_prep.plan import TRAIN, split_of
from data_prep.tokenizers.sampling import LARGEST_SHARE, Sample, SampleSettings, choose_files, draw_sample
from tests.unit.data_prep.conftest import Prepared

SETTINGS = SampleSettings(reading=ReadSettings(), sample_bytes=10_000, heldout_fraction=0.0)


def sample_of(folder: Path, settings: SampleSettings = SETTINGS) -> Sample:
    return draw_sample(choose_files(find_files(TextFiles(inputs=(str(folder),))), settings), settings)


def write_documents(folder: Path, texts: list[str], kind: str) -> None:
    folder.mkdir()
    if kind == "text":
        for number, text in enumerate(texts):
            (folder / f"{number:04d}.txt").write_text(text)
    else:
        (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_the_sample_is_bounded_and_holds_no_held_out_text(prepared: Prepared) -> None:
    settings = SampleSettings(reading=ReadSettings(), sample_bytes=6000, heldout_fraction=0.3)
    files = choose_files(find_files(prepared.source), settings)
    assert all(split_of(file.path, 0.3) == TRAIN for file in files)
    assert 5900 < draw_sample(files, settings).num_bytes < 6100


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_one_long_document_does_not_fill_the_sample(tmp_path: Path, kind: str) -> None:
    write_documents(tmp_path / "a", ["L" * 200_000, *["s" * 100] * 300], kind)
    text = "".join(sample_of(tmp_path / "a").texts)
    assert len(text) == SETTINGS.sample_bytes
    assert text.count("L") <= SETTINGS.sample_bytes // LARGEST_SHARE


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_where_there_is_little_other_text_all_of_it_is_taken(tmp_path: Path, kind: str) -> None:
    write_documents(tmp_path / "a", ["L" * 200_000, *["s" * 100] * 20], kind)
    text = "".join(sample_of(tmp_path / "a").texts)
    assert (len(text), text.count("s")) == (SETTINGS.sample_bytes, 2000)


def test_a_large_file_is_sampled_from_its_start_to_its_end(tmp_path: Path) -> None:
    write_documents(tmp_path / "a", [f"{number // 3000:x}" * 100 for number in range(30_000)], "jsonl")
    counts = [sum(text[0] == f"{tenth:x}" for text in sample_of(tmp_path / "a").texts) for tenth in range(10)]
    assert sum(counts) == 100
    assert min(counts) > 0


def test_all_documents_of_a_small_source_are_taken_in_their_order(tmp_path: Path) -> None:
    write_documents(tmp_path / "a", [f"document {number}" for number in range(50)], "jsonl")
    assert sample_of(tmp_path / "a").texts == tuple(f"document {number}" for number in range(50))
