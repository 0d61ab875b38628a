import dataclasses

import pytest

from pipeline.report.worth import verdict, ways_of, worth_names
from tests.unit.pipeline.report.sample_data import made_up_report, made_up_worth


def test_the_ways_are_all_steps_those_above_the_threshold_and_none() -> None:
    ways = ways_of(made_up_report())
    assert [(way.name, way.loss, way.mean_steps, way.milliseconds) for way in ways] == [
        ("all steps", 3.25, 3.0, 4.0),
        ("steps above tau", 3.26, 1.8, 3.0),
        ("no step", 3.61, 0.0, 1.6),
    ]


def test_the_verdict_is_what_they_differ_by() -> None:
    first, second = verdict(ways_of(made_up_report()))
    for number in ("All 3 steps", "0.360", "3.610", "3.250", "3.00 times", "2.50 times"):
        assert number in first
    for number in ("1.80 of 3", "23% fewer", "25% less", "0.0100 higher"):
        assert number in second


def test_steps_that_do_not_help_are_not_praised() -> None:
    whole, tau, none = made_up_worth()
    worse = dataclasses.replace(made_up_report(), worth=(dataclasses.replace(whole, loss=3.7), tau, none))
    first, second = verdict(ways_of(worse))
    assert "RAISE" in first
    assert "0.4400 lower" in second


def test_a_method_that_does_not_halt_has_two_ways() -> None:
    whole, _, none = made_up_worth()
    untimed = dataclasses.replace(none, speeds=())
    ways = ways_of(dataclasses.replace(made_up_report(), worth=(whole, untimed)))
    assert [way.name for way in ways] == ["all steps", "no step"]
    (only,) = verdict(ways)
    assert "3.00 times the FLOPs." in only
    assert worth_names(()) == ()


@pytest.mark.parametrize(("steps_count", "mean"), [((0, 0, 1, 1), 2.5), ((), 3.0)])
def test_without_measured_ways_there_is_the_model_as_trained(
    steps_count: tuple[int, ...], mean: float
) -> None:
    report = dataclasses.replace(made_up_report(), worth=(), steps_count=steps_count)
    (way,) = ways_of(report)
    assert (way.loss, way.mean_steps, way.milliseconds) == (report.heldout_loss, mean, 2.5)
    assert verdict([way]) == ()
