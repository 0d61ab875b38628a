from pathlib import Path

from pipeline.metrics.jsonl import JsonlSink, read_events
from pipeline.metrics.log_line import LogLineSink
from pipeline.metrics.records import SinkGroup
from tests.unit.pipeline.metrics.records import training_record, validation_record


def test_a_group_hands_every_record_to_every_sink(tmp_path: Path) -> None:
    lines: list[str] = []
    group = SinkGroup([LogLineSink(lines.append), JsonlSink(tmp_path / "metrics.jsonl")])
    group.write_training(training_record())
    group.write_validation(validation_record())
    group.close()
    assert len(lines) == 4
    assert [event["event"] for event in read_events(tmp_path / "metrics.jsonl")] == ["training", "validation"]


def test_an_empty_group_takes_records_and_does_nothing() -> None:
    group = SinkGroup()
    group.write_training(training_record())
    group.write_validation(validation_record())
    group.close()
