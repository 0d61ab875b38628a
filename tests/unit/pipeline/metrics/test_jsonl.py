import json
import math
from pathlib import Path

import pytest

from pipeline.metrics.jsonl import TRAINING, VALIDATION, JsonlSink, curve, read_events
from tests.unit.pipeline.metrics.records import training_record, validation_record


def test_events_are_read_back_as_curves(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write_training(training_record())
    sink.write_training(training_record(iteration=30, loss=5.0))
    sink.write_validation(validation_record())
    sink.close()
    events = read_events(path)
    assert curve(events, TRAINING, "lm loss") == ((20.0, 5.25), (30.0, 5.0))
    assert curve(events, TRAINING, "ponder/mean-steps") == ((20.0, 1.75), (30.0, 1.75))
    assert curve(events, VALIDATION, "lm loss validation") == ((20.0, 4.0),)
    assert events[0]["ponder/steps-histogram"] == [2.0, 1.0, 0.0, 5.0]
    assert events[0]["consumed_samples"] == 320


def test_the_hash_of_the_data_is_kept_as_text(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write_training(training_record(data_hash="0123456789abcdef"))
    sink.write_training(training_record(iteration=30))
    sink.close()
    first, second = read_events(tmp_path / "metrics.jsonl")
    assert first["data-hash"] == "0123456789abcdef"
    assert "data-hash" not in second


def test_each_event_is_in_the_file_before_the_sink_is_closed(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write_training(training_record())
    assert len(read_events(tmp_path / "metrics.jsonl")) == 1
    sink.close()


def test_values_that_json_lacks_become_null(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write_training(training_record(loss=math.nan, grad_norm=math.inf))
    sink.close()
    event = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert event["lm loss"] is None
    assert event["grad-norm"] is None
    assert curve([event], TRAINING, "lm loss") == ()


def test_a_sweep_stands_in_the_line_of_its_evaluation(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write_validation(validation_record())
    sink.close()

    (event,) = read_events(tmp_path / "metrics.jsonl")

    assert event["ponder/eval-ppl-vs-steps/step_0"] == pytest.approx(math.exp(5))
    assert event["ponder/eval-ppl-vs-steps/step_1"] is None
    assert [point["kind"] for point in event["ponder/eval-sweep"]] == ["steps", "steps", "tau"]
    assert event["ponder/eval-sweep"][2] == {
        "kind": "tau",
        "value": 1e-4,
        "loss": 4.5,
        "perplexity": pytest.approx(math.exp(4.5)),
        "mean-steps": 1.25,
        "flops-per-token": 30.0,
    }


def test_a_resumed_run_replaces_what_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for iterations in ([10, 20, 30], [20, 30, 40]):
        sink = JsonlSink(path)
        for iteration in iterations:
            sink.write_training(training_record(iteration=iteration, loss=float(iterations[0])))
        sink.close()
    assert curve(read_events(path), TRAINING, "lm loss") == (
        (10.0, 10.0),
        (20.0, 20.0),
        (30.0, 20.0),
        (40.0, 20.0),
    )


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "training", "iteration": 1, "lm loss": 2.0}\n{"event": "trai')
    assert curve(read_events(path), TRAINING, "lm loss") == ((1.0, 2.0),)


def test_a_resumed_run_goes_on_behind_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for iteration in (1, 2):
        sink = JsonlSink(path)
        sink.write_training(training_record(iteration=iteration))
        sink.close()
        with path.open("a") as file:
            file.write('{"event": "trai')
    assert [event["iteration"] for event in read_events(path)] == [1, 2]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('broken\n{"event": "training", "iteration": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1 "):
        read_events(path)
