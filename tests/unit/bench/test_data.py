import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_prep.manifest import InputRange, ShardEntry
from pipeline.data.dataset import open_dataset
from tests.bench.data import DataMeasurements, ScalingModel, compute_scaling, relative_reading
from tests.bench.data_corpus import train_tokenizer_json, write_corpus
from tests.bench.data_preparation import (
    EOD_TOKEN,
    PreparationTime,
    ShardTimes,
    describe_corpus,
    mean_time,
    time_datatrove,
    time_plain_process,
)
from tests.bench.data_reading import MEMMAP, READER, WEBDATASET, ReadingSizes, read_webdataset, time_reading
from tests.bench.data_tables import render_measurements

SIZES = ReadingSizes(num_rows=40, seq_length=32, rows_per_step=8)


def way(name: str, num_workers: int, seconds: float, working_seconds: float) -> PreparationTime:
    return PreparationTime(
        name=name,
        num_workers=num_workers,
        seconds=seconds,
        working_seconds=working_seconds,
        num_tokens=4_000_000,
        text_bytes=10_000_000,
    )


SHARD = ShardEntry(
    name="train-000000.tar",
    split="train",
    size_bytes=1,
    sha256="none",
    num_tokens=1,
    num_documents=1,
    num_members=1,
    tokenizer_sha256="none",
    inputs=InputRange(first_file="a", last_file="b", num_files=1, num_bytes=1, fingerprint="none"),
)
MEASURED = DataMeasurements(
    machine="a machine, 2 cores",
    plain=way("plain process", 0, 10.0, 10.0),
    prepared=(way("megaponder", 1, 15.0, 11.0), way("megaponder", 2, 9.0, 5.0)),
    ours_beside_datatrove=way("megaponder", 2, 8.0, 4.0),
    datatrove=way("datatrove", 2, 12.0, 12.0),
    task_overhead_seconds=0.02,
    computed=(
        compute_scaling(
            ScalingModel(worker_bytes_per_second=1e6, task_overhead_seconds=0.02, start_seconds=4.0),
            text_bytes=10**12,
            num_workers=64,
        ),
    ),
    reading_tokens_per_second={MEMMAP: 2e8, READER: 1e8},
)


def rendered(measured: DataMeasurements) -> str:
    output = io.StringIO()
    Console(file=output, width=200).print(render_measurements(measured))
    return output.getvalue()


def test_a_corpus_has_the_size_asked_for_and_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = (write_corpus(tmp_path / name, 1_500_000) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len(first) == 3
    corpus = describe_corpus(first)
    texts = [json.loads(line)["text"] for path in first for line in path.open()]
    assert corpus.text_bytes == sum(len(text.encode()) for text in texts)
    assert 1_500_000 <= corpus.text_bytes < 1_500_000 + max(len(text.encode()) for text in texts)
    assert len(set(texts)) > 0.9 * len(texts)


def test_a_repeated_source_is_a_different_document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("".join(f"line {number}\n" for number in range(2000)))
    monkeypatch.setattr("tests.bench.data_corpus._sources", lambda: iter([source]))
    paths = write_corpus(tmp_path / "text", 100_000)
    texts = [json.loads(line)["text"] for path in paths for line in path.open()]
    assert len(texts) > 3
    assert len(set(texts)) == len(texts)
    lines = [set(text.splitlines()) for text in texts[1:]]
    assert all(0.9 < len(each & set(texts[0].splitlines())) / 2000 < 1 for each in lines)


def test_a_plain_process_tokenizes_every_document(tmp_path: Path) -> None:
    paths = write_corpus(tmp_path / "text", 200_000)
    tokenizer = tmp_path / "tokenizer.json"
    train_tokenizer_json(paths, tokenizer, eod_token=EOD_TOKEN)
    time = time_plain_process(describe_corpus(paths), tokenizer)
    assert time.seconds == time.working_seconds > 0
    assert 200_000 / 6 < time.num_tokens < 200_000 / 2


def test_without_datatrove_there_is_no_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.data_preparation.find_spec", lambda name: None)
    corpus = describe_corpus([])
    assert time_datatrove(corpus, tmp_path / "tokenizer.json", num_workers=2) is None


def test_all_readers_are_timed_and_read_the_same_tokens(tmp_path: Path) -> None:
    rates = time_reading(SIZES, tmp_path, repeats=1)
    assert rates.keys() >= {MEMMAP, READER, WEBDATASET}
    assert all(rate > 0 for rate in rates.values())
    dataset = open_dataset(tmp_path, "train", seq_length=32)
    assert len(dataset) >= SIZES.num_rows
    raw = np.fromfile(tmp_path / "tokens.bin", dtype="<u2")
    expected = [raw[32 * index : 32 * index + 33].tolist() for index in (0, 7, 39)]
    assert dataset.rows([0, 7, 39]).tokens.tolist() == expected
    assert read_webdataset(tmp_path, 32, 320) == 320


def test_the_mean_of_two_measurements_is_of_their_times_alone() -> None:
    mean = mean_time(way("plain process", 0, 10.0, 8.0), way("plain process", 0, 14.0, 10.0))
    assert mean == way("plain process", 0, 12.0, 9.0)


def test_ratios_and_limits_follow_from_the_times() -> None:
    assert MEASURED.speedup == pytest.approx(10 / 5)
    assert MEASURED.lead == pytest.approx(12 / 8)
    assert relative_reading(MEASURED) == {MEMMAP: 1.0, READER: 0.5}
    assert not MEASURED.falls_short()
    assert not MEASURED.falls_short(
        minimum_speedup=1.9, minimum_lead=1.4, minimum_reader_tokens_per_second=9e7
    )
    assert MEASURED.falls_short(minimum_speedup=2.1)
    assert MEASURED.falls_short(minimum_lead=1.6)
    assert MEASURED.falls_short(minimum_reader_tokens_per_second=2e8)
    assert replace(MEASURED, datatrove=None).falls_short(minimum_lead=0.1)
    assert json.loads(json.dumps(MEASURED.facts()))["lead"] == pytest.approx(1.5)


def test_the_rate_counts_from_when_every_worker_has_finished_a_shard() -> None:
    clock = iter([10.0, 11.0, 13.0, 16.0])
    times = ShardTimes(lambda: next(clock))
    assert times.tokens_per_second(2) is None
    for num_tokens in (100, 200, 300, 400):
        times.advance(SHARD.model_copy(update={"num_tokens": num_tokens}))
    assert times.tokens_per_second(1) == pytest.approx(900 / 6)
    assert times.tokens_per_second(2) == pytest.approx(700 / 5)
    assert times.tokens_per_second(4) is None
    assert times.seconds_per_shard == pytest.approx(2.0)


def test_the_tables_show_the_machine_the_ways_and_their_speed() -> None:
    text = rendered(MEASURED)
    for part in ("a machine, 2 cores", "megaponder, 2 workers", "2.00 x", "1.50 x", "1 TB"):
        assert part in text
    assert "pip install" in rendered(replace(MEASURED, datatrove=None))


def test_computed_times_are_rounds_of_tasks_or_their_assignment() -> None:
    model = ScalingModel(worker_bytes_per_second=1_000_000, task_overhead_seconds=1.0, start_seconds=10.0)
    # 32 shards of 10 MB, each 10 s of text and 1 s of overhead
    few = compute_scaling(model, text_bytes=320_000_000, num_workers=10)
    assert few.num_tasks == 32
    assert few.seconds == pytest.approx(10 + 4 * 11)
    assert few.efficiency == pytest.approx(320 / 10 / 54)
    # with as many workers as tasks, assignment takes longer than the tasks
    many = compute_scaling(model, text_bytes=320_000_000, num_workers=32)
    assert many.seconds == pytest.approx(10 + 32 * 1.0)
