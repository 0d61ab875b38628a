import pytest

from pipeline.metrics.short_line import (
    LONGEST_LINE,
    ShortLineSink,
    render_short_line,
    render_short_validation,
)
from tests.unit.pipeline.metrics.records import training_record, validation_record

SCALARS = {"ponder/mean-steps": 1.75, "ponder/flops-saved": 0.125}


def test_a_line_has_every_field_that_was_measured() -> None:
    line = render_short_line(training_record(scalars=SCALARS, memory_bytes=3 * 2**30))
    expected = "20 loss 5.2500 grad 1.23 lr 1.0e-03 2k tok/s steps 1.75 saved 12% 3 GiB"
    assert " ".join(line.split()) == expected
    plain = render_short_line(training_record(scalars={}, grad_norm=None))
    assert " ".join(plain.split()) == "20 loss 5.2500 lr 1.0e-03 2k tok/s"


@pytest.mark.parametrize(
    "changes",
    [
        {"iteration": 143_000, "grad_norm": 123.456, "tokens_per_second": 12_345_678.0},
        {"iteration": 10**9, "loss": -12345.678, "grad_norm": 1.234e-17, "tokens_per_second": 999_960.0},
        {"loss": float("nan"), "grad_norm": float("inf"), "learning_rate": 0.0},
    ],
)
def test_a_line_fits_a_terminal_of_80_columns(changes: dict[str, float]) -> None:
    scalars = {"ponder/mean-steps": 12.345, "ponder/flops-saved": 1.0}
    record = training_record(**changes, scalars=scalars, memory_bytes=140 * 2**30)
    line = render_short_line(record)
    assert len(line) <= LONGEST_LINE
    assert line.split()[:2] == [str(record.iteration), "loss"]
    assert len(render_short_validation(validation_record(loss=1e9, iteration=10**9))) <= LONGEST_LINE


@pytest.mark.parametrize(
    ("rate", "shown"), [(0.5, "0.5"), (999.4, "999"), (999.9, "1k"), (12_345.0, "12.3k"), (2e9, "2G")]
)
def test_rates_have_three_digits(rate: float, shown: str) -> None:
    assert f"  {shown} tok/s" in render_short_line(training_record(tokens_per_second=rate))


def test_the_sink_writes_one_line_per_record() -> None:
    lines: list[str] = []
    sink = ShortLineSink(lines.append)
    sink.write_training(training_record())
    sink.write_validation(validation_record())
    sink.close()
    assert len(lines) == 2
    assert "4.0000" in lines[1]
