import pytest

from pipeline.metrics.collapse import REPEATED_AFTER, Collapse, CollapseAlarm, CollapseWarning

ALL_FIRST = [1000.0, 0.0, 0.0]
NEVER_EARLY = [0.0, 0.0, 1000.0]
MIXED = [200.0, 300.0, 500.0]


def warnings(
    alarm: CollapseAlarm, intervals: list[list[float]], weight: float = 0.3
) -> list[CollapseWarning]:
    found = (alarm.observe(counts, penalty_weight=weight) for counts in intervals)
    return [warning for warning in found if warning is not None]


def test_halting_at_once_is_warned_about_once() -> None:
    (warning,) = warnings(CollapseAlarm(3), [ALL_FIRST] * 10)
    assert warning.kind is Collapse.ALWAYS_FIRST
    assert "`ponder.penalty_weight` (now 0.3)" in warning.advice


def test_never_halting_is_warned_about_once() -> None:
    (warning,) = warnings(CollapseAlarm(3), [NEVER_EARLY] * 10)
    assert warning.kind is Collapse.NEVER_EARLY
    assert "`ponder.penalty_weight` (now 0.3)" in warning.advice


def test_the_warning_waits_for_patience_intervals_in_a_row() -> None:
    alarm = CollapseAlarm(3)
    assert warnings(alarm, [ALL_FIRST, ALL_FIRST, MIXED, ALL_FIRST, ALL_FIRST]) == []
    assert len(warnings(alarm, [ALL_FIRST])) == 1


def test_one_kind_of_collapse_does_not_hide_the_other() -> None:
    alarm = CollapseAlarm(2)
    found = warnings(alarm, [NEVER_EARLY] * 5 + [ALL_FIRST] * 5)
    assert [warning.kind for warning in found] == [Collapse.NEVER_EARLY, Collapse.ALWAYS_FIRST]


def test_a_few_tokens_that_differ_are_still_a_collapse() -> None:
    assert len(warnings(CollapseAlarm(1), [[9995.0, 5.0, 0.0]])) == 1
    assert warnings(CollapseAlarm(1), [[990.0, 10.0, 0.0]]) == []


def test_taking_every_step_is_no_collapse_while_nothing_asks_to_halt() -> None:
    assert warnings(CollapseAlarm(2), [NEVER_EARLY] * 5, weight=0.0) == []


def test_gates_that_all_open_are_no_collapse_before_the_penalty_begins_and_one_after() -> None:
    alarm = CollapseAlarm(2)
    assert warnings(alarm, [NEVER_EARLY] * 5, weight=0.0) == []
    (warning,) = warnings(alarm, [NEVER_EARLY] * 5, weight=0.1)
    assert warning.kind is Collapse.NEVER_EARLY
    assert "`ponder.bottom_k_fraction`" in warning.advice


def test_gates_that_all_close_are_a_collapse_even_before_the_penalty_begins() -> None:
    (warning,) = warnings(CollapseAlarm(2), [ALL_FIRST] * 5, weight=0.0)
    assert warning.kind is Collapse.ALWAYS_FIRST


def test_a_model_without_extra_steps_cannot_collapse() -> None:
    assert warnings(CollapseAlarm(1), [[1000.0]]) == []


def test_intervals_without_tokens_say_nothing() -> None:
    assert warnings(CollapseAlarm(1), [[0.0, 0.0, 0.0]]) == []


def test_patience_must_be_positive() -> None:
    with pytest.raises(ValueError, match="collapse_patience"):
        CollapseAlarm(0)


def test_a_closed_router_is_warned_about_though_tokens_take_every_step() -> None:
    alarm = CollapseAlarm(2)
    found = [
        alarm.observe(NEVER_EARLY, penalty_weight=0.3, tail_mass=[1.0, 0.3, mass])
        for mass in (0.9, 0.04, 0.06, 0.04, 0.04, 0.03)
    ]
    kinds = [warning and warning.kind for warning in found]
    assert kinds == [None, None, None, None, Collapse.ROUTER_CLOSED, None]


def test_a_low_tail_mass_is_no_collapse_where_each_step_is_trained() -> None:
    alarm = CollapseAlarm(1, trains_each_step=True)
    took_one_step = (0, 8, 0)

    assert alarm.observe(took_one_step, penalty_weight=0.0, tail_mass=[1.0, 0.7, 0.01]) is None
    warning = alarm.observe(ALL_FIRST, penalty_weight=0.0, tail_mass=[1.0, 0.0, 0.0])
    assert warning is not None
    assert warning.kind is Collapse.ALWAYS_FIRST


def test_what_lasts_is_warned_about_again_only_much_later() -> None:
    alarm = CollapseAlarm(2)
    found = [alarm.observe(ALL_FIRST, penalty_weight=0.3) is not None for _ in range(2 * REPEATED_AFTER + 10)]
    assert [index for index, warned in enumerate(found) if warned] == [1, 2 * REPEATED_AFTER + 1]
