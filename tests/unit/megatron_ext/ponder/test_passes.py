from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.ponder.passes import (
    PassPlan,
    draw_jacobi_iterations,
    iteration_plan,
    jacobi_plan,
    mean_over_sweeps,
    pause_plan,
    scheduled_number,
    single_pass_plan,
)

steps = st.integers(0, 2**40)


def test_build_up_then_sweeps_then_the_final_pass() -> None:
    plan = jacobi_plan(2, 3)

    assert plan.slots == (1, 2, 3, 3, 3, 3)
    assert [plan.sweep_of(index) for index in range(6)] == [None, None, 0, 1, 2, None]
    assert [plan.is_final(index) for index in range(6)] == [False] * 5 + [True]


def test_without_sweeps_the_final_pass_follows_the_build_up() -> None:
    plan = jacobi_plan(3, 0)

    assert plan.slots == (1, 2, 3, 4)
    assert [plan.sweep_of(index) for index in range(4)] == [None] * 4


@given(num_jacobi_iterations=st.integers(0, 20))
def test_without_thoughts_there_is_one_ordinary_pass(num_jacobi_iterations: int) -> None:
    assert jacobi_plan(0, num_jacobi_iterations) == PassPlan(slots=(1,))
    assert jacobi_plan(0, num_jacobi_iterations).sweep_of(0) is None


@given(num_thoughts=st.integers(1, 8), num_sweeps=st.integers(0, 8))
def test_pass_p_sees_min_p_k_plus_one_slots(num_thoughts: int, num_sweeps: int) -> None:
    plan = jacobi_plan(num_thoughts, num_sweeps)

    assert plan.num_passes == num_thoughts + num_sweeps + 1
    assert plan.slots == tuple(min(index, num_thoughts) + 1 for index in range(plan.num_passes))
    by_formula = num_thoughts * (num_thoughts + 1) // 2 + (num_sweeps + 1) * (num_thoughts + 1)
    assert plan.rows_per_token == by_formula
    sweeps = [plan.sweep_of(index) for index in range(plan.num_passes)]
    assert [sweep for sweep in sweeps if sweep is not None] == list(range(num_sweeps))


@given(num_iterations=st.integers(0, 8))
def test_iterations_are_passes_of_one_row(num_iterations: int) -> None:
    plan = iteration_plan(num_iterations, 0)

    assert plan.slots == (1,) * (num_iterations + 1)
    assert [plan.sweep_of(index) for index in range(plan.num_passes)] == [None] * plan.num_passes
    assert [plan.is_final(index) for index in range(plan.num_passes)] == [False] * num_iterations + [True]


@given(num_thoughts=st.integers(0, 6), num_sweeps=st.integers(0, 6))
def test_a_pass_hands_on_the_thoughts_of_the_next_one(num_thoughts: int, num_sweeps: int) -> None:
    plan = jacobi_plan(num_thoughts, num_sweeps)

    handed = [plan.rows_handed(index) for index in range(plan.num_passes)]
    assert handed == [rows - 1 for rows in plan.slots[1:]] + [0]
    assert _num_rows_handed(plan) == num_thoughts * (num_thoughts + 1) // 2 + num_sweeps * num_thoughts
    assert _num_rows_handed(iteration_plan(num_thoughts, num_sweeps)) == num_thoughts
    assert _num_rows_handed(pause_plan(num_thoughts, num_sweeps)) == 0


def test_every_pass_belongs_to_one_phase() -> None:
    assert [jacobi_plan(2, 1).phase(index) for index in range(4)] == [
        "build_up",
        "build_up",
        "sweep",
        "final",
    ]
    assert [iteration_plan(1, 1).phase(index) for index in range(2)] == ["build_up", "final"]
    assert pause_plan(2, 1).phase(0) == single_pass_plan(2, 1).phase(0) == "final"


def test_pauses_widen_one_pass() -> None:
    assert pause_plan(3, 2).slots == (4,)
    assert single_pass_plan(3, 2).slots == (1,)


@given(num_thoughts=st.integers(0, 5), low=st.integers(0, 4), width=st.integers(0, 4))
def test_a_quantity_at_the_mean_j_is_its_mean_over_drawn_j(num_thoughts: int, low: int, width: int) -> None:
    def rows(num_sweeps: int) -> int:
        return jacobi_plan(num_thoughts, num_sweeps).rows_per_token

    drawn = range(low, low + width + 1)
    mean = sum(map(rows, drawn)) / len(drawn)

    assert mean_over_sweeps(rows, low + width / 2) == mean


def test_a_schedule_is_constant_between_its_steps() -> None:
    schedule = ((0, 1), (10, 4), (11, 2))

    assert [scheduled_number(schedule, step) for step in (0, 9, 10, 11, 10**9)] == [1, 1, 4, 2, 2]


@given(
    later=st.dictionaries(st.integers(1, 40), st.integers(0, 5), max_size=4),
    start=st.integers(0, 5),
    step=st.integers(0, 50),
)
def test_a_schedule_says_what_its_last_begun_pair_says(later: dict[int, int], start: int, step: int) -> None:
    schedule = [(0, start), *sorted(later.items())]

    expected = start
    for first, sweeps in schedule:
        if first <= step:
            expected = sweeps
    assert scheduled_number(schedule, step) == expected


@given(seed=steps, step=steps, low=st.integers(0, 5), width=st.integers(0, 5))
def test_a_draw_is_a_pure_function_within_its_range(seed: int, step: int, low: int, width: int) -> None:
    drawn = draw_jacobi_iterations(seed, step, low, low + width)

    assert low <= drawn <= low + width
    assert drawn == draw_jacobi_iterations(seed, step, low, low + width)


def test_the_draws_of_a_known_seed_never_change() -> None:
    # Resumed runs and runs on other machines must repeat them.
    assert [draw_jacobi_iterations(1234, step, 2, 4) for step in range(12)] == [
        3,
        2,
        4,
        4,
        2,
        2,
        4,
        3,
        2,
        3,
        4,
        4,
    ]


def test_draws_are_uniform_over_steps_and_over_seeds() -> None:
    over_steps = Counter(draw_jacobi_iterations(1, step, 2, 4) for step in range(3000))
    over_seeds = Counter(draw_jacobi_iterations(seed, 1, 2, 4) for seed in range(3000))

    for counts in (over_steps, over_seeds):
        # 1000 each; five standard deviations of a fair draw are 129.
        assert all(abs(counts[value] - 1000) < 130 for value in (2, 3, 4))


def test_consecutive_draws_are_independent() -> None:
    draws = [draw_jacobi_iterations(1, step, 0, 1) for step in range(4001)]
    pairs = Counter(pairwise(draws))

    assert all(abs(pairs[first, second] - 1000) < 150 for first in (0, 1) for second in (0, 1))


def _num_rows_handed(plan: PassPlan) -> int:
    return sum(map(plan.rows_handed, range(plan.num_passes)))


def test_the_last_passes_have_gradients() -> None:
    # K3, J2: 1, 2, 3, 4, 4, 4 rows.
    plan = jacobi_plan(3, 2).truncated(2)

    assert [plan.has_gradient(index) for index in range(6)] == [False] * 4 + [True] * 2
    assert (plan.rows_per_token, plan.gradient_rows_per_token) == (18, 8)
    assert jacobi_plan(3, 2).gradient_rows_per_token == 18
    assert jacobi_plan(3, 2).truncated(7).first_with_gradient == 0
    assert jacobi_plan(0, 2).truncated(1).gradient_rows_per_token == 1


@pytest.mark.parametrize(
    ("gradient_passes", "index", "num_sweeps"),
    [(None, 3, 1), (None, 5, 3), (None, 7, 5), (1, 3, 1), (3, 3, 3), (3, 4, 4), (3, 5, 5), (3, 6, 5)],
)
def test_converged_sweeps_are_left_out_up_to_those_with_gradients(
    gradient_passes: int | None, index: int, num_sweeps: int
) -> None:
    plan = jacobi_plan(3, 5).truncated(gradient_passes)

    ended = plan.ended_after(index)

    assert ended == jacobi_plan(3, num_sweeps).truncated(gradient_passes)
    # The pass that has run stays what it was, and those that a number asks for come after it.
    assert ended.has_gradient(index) == plan.has_gradient(index)
    assert gradient_passes is None or ended.first_with_gradient in (index + 1, plan.first_with_gradient)
