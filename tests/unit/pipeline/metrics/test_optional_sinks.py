import logging
import threading
from pathlib import Path

import pytest

from pipeline.metrics.jsonl import JsonlSink, read_events
from pipeline.metrics.optional_sinks import BackgroundSink, OptionalSink
from pipeline.metrics.records import TrainingRecord, ValidationRecord
from tests.unit.pipeline.metrics.records import training_record, validation_record


class FailingSink:
    """A sink that fails after some records, or when it is closed."""

    def __init__(self, *, after: int = 0, waits_for: threading.Event | None = None) -> None:
        self.calls: list[str] = []
        self._after = after
        self._waits_for = waits_for

    def write_training(self, record: TrainingRecord) -> None:
        self._call("training")

    def write_validation(self, record: ValidationRecord) -> None:
        self._call("validation")

    def close(self) -> None:
        self._call("close")

    def _call(self, name: str) -> None:
        if self._waits_for is not None:
            self._waits_for.wait(20)
        self.calls.append(name)
        if len(self.calls) > self._after:
            raise OSError("no space\nleft")


def write_all(sink: OptionalSink | BackgroundSink) -> None:
    sink.write_training(training_record())
    sink.write_validation(validation_record())
    sink.write_training(training_record())
    sink.close()


@pytest.mark.parametrize(
    ("after", "calls"),
    [
        (0, ["training"]),
        (1, ["training", "validation"]),
        (3, ["training", "validation", "training", "close"]),
    ],
)
@pytest.mark.parametrize("is_in_background", [False, True])
def test_a_sink_that_fails_is_reported_once_and_is_off(
    after: int, calls: list[str], is_in_background: bool, caplog: pytest.LogCaptureFixture
) -> None:
    failing = FailingSink(after=after)
    with caplog.at_level(logging.WARNING):
        if is_in_background:
            write_all(BackgroundSink("service", lambda: failing))
        else:
            write_all(OptionalSink("service", failing))
    assert failing.calls == calls
    (record,) = caplog.records
    assert "no space left" in record.getMessage()


@pytest.mark.parametrize("is_in_background", [False, True])
def test_a_sink_that_works_gets_every_record(
    tmp_path: Path, is_in_background: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    if is_in_background:
        write_all(BackgroundSink("service", lambda: JsonlSink(path)))
    else:
        write_all(OptionalSink("service", JsonlSink(path)))
    assert len(path.read_text().splitlines()) == 3
    assert {event["event"] for event in read_events(path)} == {"training", "validation"}
    assert not caplog.records


def test_a_service_that_cannot_be_opened_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> FailingSink:
        raise RuntimeError("no key")

    write_all(BackgroundSink("service", refuse))
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("most_waiting", "close_seconds"), [(1, 20.0), (100, 0.0)])
def test_a_service_that_does_not_respond_delays_nothing(
    most_waiting: int, close_seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    responds = threading.Event()
    sink = BackgroundSink(
        "service",
        lambda: FailingSink(after=100, waits_for=responds),
        close_seconds=close_seconds,
        most_waiting=most_waiting,
    )
    for _ in range(5):
        sink.write_training(training_record())
    if close_seconds == 0:
        sink.close()
    assert len(caplog.records) == 1
    responds.set()
