from itertools import pairwise

import pytest

from pipeline.cost.schedule import Interval, Timeline, Work, flushing_timeline, looping_timeline

BUILD_UP = (1, 2, 3, 3, 3)
SIZES = [(stages, stages * groups) for stages in (1, 2, 3, 4, 8) for groups in (1, 2, 4)]
BOTH = [looping_timeline, flushing_timeline]


def intervals_of(timeline: Timeline) -> dict[Work, Interval]:
    return {interval.work: interval for stage in timeline.stages for interval in stage}


@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
@pytest.mark.parametrize("passes", [1, 2, 5])
def test_bubbles_of_equal_passes_are_the_closed_forms(stages: int, micro_batches: int, passes: int) -> None:
    for rows in (1, 4):
        looping = looping_timeline(stages, micro_batches, (rows,) * passes)
        flushing = flushing_timeline(stages, micro_batches, (rows,) * passes)

        assert looping.bubble_share == pytest.approx((stages - 1) / (passes * micro_batches + stages - 1))
        assert flushing.bubble_share == pytest.approx((stages - 1) / (micro_batches + stages - 1))


@pytest.mark.parametrize("slots", [(1,), BUILD_UP, (5, 1)])
def test_what_flushing_wastes_does_not_depend_on_the_passes(slots: tuple[int, ...]) -> None:
    assert flushing_timeline(4, 8, slots).bubble_share == pytest.approx(3 / 11)


def test_passes_that_grow_cost_the_looping_pipeline_more_than_equal_ones() -> None:
    equal, growing = looping_timeline(4, 16, (1,) * len(BUILD_UP)), looping_timeline(4, 16, BUILD_UP)

    assert growing.bubble_share > equal.bubble_share
    assert growing.duration < flushing_timeline(4, 16, BUILD_UP).duration


@pytest.mark.parametrize("time", BOTH)
@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_every_stage_does_everything_once_and_one_thing_at_a_time(
    time: type[Timeline], stages: int, micro_batches: int
) -> None:
    timeline = time(stages, micro_batches, BUILD_UP)

    for number, intervals in enumerate(timeline.stages):
        assert {interval.work for interval in intervals} == {
            Work(number, index, micro_batch, is_backward)
            for index in range(len(BUILD_UP))
            for micro_batch in range(micro_batches)
            for is_backward in (False, True)
        }
        assert len(intervals) == 2 * len(BUILD_UP) * micro_batches
        for interval, following in pairwise(intervals):
            assert interval.end <= following.start
        for interval in intervals:
            factor = 2 if interval.work.is_backward else 1
            assert interval.end - interval.start == factor * BUILD_UP[interval.work.pass_index]


@pytest.mark.parametrize("time", BOTH)
@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_nothing_begins_before_what_it_needs_is_there(
    time: type[Timeline], stages: int, micro_batches: int
) -> None:
    found = intervals_of(time(stages, micro_batches, BUILD_UP))
    # The way of a micro-batch: through all stages of all passes, and back.
    way = [(index, stage) for index in range(len(BUILD_UP)) for stage in range(stages)]

    for micro_batch in range(micro_batches):
        trip = [Work(stage, index, micro_batch, False) for index, stage in way]
        trip += [Work(stage, index, micro_batch, True) for index, stage in reversed(way)]
        for before, after in pairwise(trip):
            assert found[before].end <= found[after].start


def test_flushing_begins_a_pass_when_no_stage_works_on_the_one_before() -> None:
    found = intervals_of(flushing_timeline(3, 6, BUILD_UP)).values()

    for index in range(1, len(BUILD_UP)):
        ends = [i.end for i in found if i.work.pass_index == index - 1 and not i.work.is_backward]
        starts = [i.start for i in found if i.work.pass_index == index and not i.work.is_backward]
        assert max(ends) <= min(starts)


def test_stages_warm_up_as_megatron_has_them_do() -> None:
    timeline = looping_timeline(4, 8, BUILD_UP)

    for number, intervals in enumerate(timeline.stages):
        warm_up = [interval.work.is_backward for interval in intervals].index(True)
        # One forward more than Megatron counts, because its turns begin with a forward.
        assert warm_up == 2 * (4 - 1 - number) + (len(BUILD_UP) - 1) * 4 + 1


def test_backward_takes_longer_where_layers_are_computed_again() -> None:
    timeline = looping_timeline(2, 2, (1, 1), backward_per_forward=3)

    assert timeline.duration == 2 * 2 * 4 + 4
    assert timeline.bubble_share == pytest.approx(1 / 5)


def test_flushing_holds_everything_for_backward_and_looping_what_is_under_way() -> None:
    assert flushing_timeline(2, 8, BUILD_UP).peak_held == 8 * sum(BUILD_UP)
    # One pass is plain 1F1B: the first stage holds as many micro-batches as there are stages.
    assert looping_timeline(4, 8, (3,)).peak_held == 4 * 3
    assert looping_timeline(2, 8, BUILD_UP).peak_held == looping_timeline(2, 80, BUILD_UP).peak_held


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 3), (2, 4), (3, 6)])
def test_passes_without_gradients_run_forward_only_and_first(
    stages: int, micro_batches: int, first: int
) -> None:
    timeline = looping_timeline(stages, micro_batches, BUILD_UP, first_with_gradient=first)
    found = intervals_of(timeline)

    assert {work.pass_index for work in found if work.is_backward} == set(range(first, len(BUILD_UP)))
    assert len(found) == stages * micro_batches * (2 * len(BUILD_UP) - first)
    full = looping_timeline(stages, micro_batches, BUILD_UP)
    assert timeline.duration < full.duration
    assert timeline.peak_held <= full.peak_held
    if stages == 1:
        assert timeline.duration == micro_batches * (sum(BUILD_UP) + 2 * sum(BUILD_UP[first:]))
        return
    # All are handed round from the last stage before the first one begins what follows.
    last = max(i.end for work, i in found.items() if work.pass_index == first - 1)
    assert min(i.start for work, i in found.items() if work.pass_index == first and work.stage == 0) >= last


def test_an_even_pipeline_is_flushed_twice_where_passes_have_no_gradients() -> None:
    timeline = looping_timeline(2, 4, (1, 1, 1, 1), first_with_gradient=2)

    # Two passes forward, then two forward and backward, each with one stage idle at its ends.
    assert timeline.duration == 2 * 4 + 1 + 2 * 4 * 3 + 3
