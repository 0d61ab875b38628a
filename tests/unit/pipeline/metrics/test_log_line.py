import re

from pipeline.metrics.log_line import LogLineSink, render_training_line, render_validation_block
from tests.unit.pipeline.metrics.records import training_record, validation_record

# Written from the format strings of Megatron-LM's training log.
MEGATRON_LINE = re.compile(
    r"^ \[(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\]"
    r" iteration (?P<iteration>[ \d]{8})/(?P<total>[ \d]{8}) \|"
    r" consumed samples: (?P<samples>[ \d]{12}) \|"
    r" elapsed time per iteration \(ms\): (?P<elapsed>\d+\.\d) \|"
    r"( throughput per GPU \(TFLOP/s/GPU\): (?P<throughput>\d+\.\d) \|)?"
    r" learning rate: (?P<rate>\d\.\d{6}E[+-]\d\d) \|"
    r" global batch size: (?P<batch>[ \d]{5}) \|"
    r" lm loss: (?P<loss>\d\.\d{6}E[+-]\d\d) \|"
    r" loss scale: (?P<scale>\d+\.\d) \|"
    r"( grad norm: (?P<norm>\d+\.\d{3}) \|)?"
    r"( num zeros: (?P<zeros>\d+) \|)?"
    r"( params norm: (?P<params>\d+\.\d{3}) \|)?"
    r" number of skipped iterations: (?P<skipped>[ \d]{3}) \|"
    r" number of nan iterations: (?P<nan>[ \d]{3}) \|"
    r"(?P<further>.*)$"
)
TIME = "2026-01-02 03:04:05"


def test_the_line_is_megatrons_with_new_fields_at_the_end() -> None:
    found = MEGATRON_LINE.match(render_training_line(training_record(), timestamp=TIME))
    assert found is not None
    assert found["time"] == TIME
    assert (int(found["iteration"]), int(found["total"]), int(found["samples"])) == (20, 400, 320)
    assert (float(found["elapsed"]), float(found["throughput"])) == (512.5, 0.1)
    assert (float(found["rate"]), int(found["batch"]), float(found["loss"])) == (1e-3, 16, 5.25)
    assert (float(found["scale"]), float(found["norm"])) == (1.0, 1.234)
    assert (int(found["skipped"]), int(found["nan"])) == (0, 0)
    assert found["further"] == " tokens per second: 1998.0 | mean steps: 1.7500 |"


def test_a_rate_of_the_router_follows_that_of_the_backbone() -> None:
    line = render_training_line(training_record(decoupled_learning_rate=4e-3), timestamp=TIME)
    assert " | learning rate: 1.000000E-03 | decoupled learning rate: 4.000000E-03 | global batch" in line


def test_a_rate_of_muon_follows_those_of_adamw() -> None:
    line = render_training_line(training_record(muon_learning_rate=2e-2), timestamp=TIME)
    assert " | learning rate: 1.000000E-03 | muon learning rate: 2.000000E-02 | global batch" in line


def test_utilisation_is_shown_where_the_peak_of_the_device_is_known() -> None:
    line = render_training_line(training_record(mfu=0.4123, hfu=0.55), timestamp=TIME)
    assert MEGATRON_LINE.match(line)
    assert " | MFU: 41.2% | HFU: 55.0% | mean steps:" in line


def test_the_hash_of_the_data_ends_the_line() -> None:
    line = render_training_line(training_record(data_hash="0123456789abcdef"), timestamp=TIME)
    assert MEGATRON_LINE.match(line)
    assert line.endswith(" | data hash: 0123456789abcdef |")


def test_fields_that_were_not_measured_are_left_out() -> None:
    record = training_record(tflops_per_device=None, grad_norm=None, scalars={})
    found = MEGATRON_LINE.match(render_training_line(record, timestamp=TIME))
    assert found is not None
    assert found["throughput"] is None
    assert found["norm"] is None


def test_optional_norms_stand_where_megatron_has_them() -> None:
    record = training_record(num_zeros=7, params_norm=12.5)
    found = MEGATRON_LINE.match(render_training_line(record, timestamp=TIME))
    assert found is not None
    assert (found["zeros"], found["params"]) == ("7", "12.500")


def test_validation_is_a_dashed_block() -> None:
    first, middle, last = render_validation_block(validation_record()).split("\n")
    expected = " validation loss at iteration 20 | lm loss value: 4.000000E+00 | lm loss PPL: 5.459815E+01 | "
    assert middle == expected
    assert first == last == "-" * (len(expected) + 1)


def test_perplexity_does_not_overflow() -> None:
    assert "PPL: 4.851652E+08" in render_validation_block(validation_record(loss=5000.0))


def test_the_sink_emits_one_line_per_interval_and_three_per_evaluation() -> None:
    lines: list[str] = []
    sink = LogLineSink(lines.append)
    sink.write_training(training_record())
    sink.write_validation(validation_record())
    sink.close()
    assert MEGATRON_LINE.match(lines[0])
    assert len(lines) == 4
