"""The computed timeline of one training step: which stage works on which pass, and when.

The order of each stage's work is Megatron's own; a piece of work starts when the stage is free and its inputs
exist. Forward through a pass takes as long as the pass has slots, backward a fixed multiple of it.
Stages are taken to be equally fast. Not modelled are what one stage does alone (head, mixtures, router), the
growth of attention with the rows, and all communication.

With P equal passes, m micro-batches and p stages, idle time is (p - 1) / (P m + p - 1) of a looping step and
(p - 1) / (m + p - 1) of one that flushes the pipeline between passes.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches, get_schedule_table

from pipeline.cost.flops import BACKWARD_PER_FORWARD, RECOMPUTING_LAYERS


def backward_time(recompute: str) -> int:
    """Return the time of backward over that of forward for a setting of `parallel.recompute`."""
    return BACKWARD_PER_FORWARD + (recompute in RECOMPUTING_LAYERS)


@dataclass(frozen=True, slots=True)
class Work:
    """Forward or backward of one micro-batch through one pass on one stage; all indices are 0-based."""

    stage: int
    pass_index: int
    micro_batch: int
    is_backward: bool


@dataclass(frozen=True, slots=True)
class Interval:
    """A piece of work and its time, from `start` to `end` (excluded)."""

    work: Work
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One step: what every stage does, in order of time.

    Attributes:
        stages: one sequence of intervals for each stage.
    """

    stages: tuple[tuple[Interval, ...], ...]

    @property
    def duration(self) -> int:
        """Time of the step; 1 is a forward of one row per token on one stage."""
        return max(intervals[-1].end for intervals in self.stages)

    @property
    def bubble_share(self) -> float:
        """Share of the step in which a stage is idle, mean over the stages."""
        busy = sum(interval.end - interval.start for intervals in self.stages for interval in intervals)
        return 1 - busy / (self.duration * len(self.stages))

    @property
    def peak_held(self) -> int:
        """Rows per token of all the micro-batches and passes that a stage holds for backward at its peak."""
        return max(map(_peak_held, self.stages))


def looping_timeline(
    num_stages: int,
    num_micro_batches: int,
    slots: Sequence[int],
    *,
    backward_per_forward: int = BACKWARD_PER_FORWARD,
    first_with_gradient: int = 0,
) -> Timeline:
    """Time the passes as virtual stages of Megatron's interleaved schedule, which is how they are trained.

    Args:
        num_stages: p.
        num_micro_batches: m, a multiple of p.
        slots: rows per token of each pass.
        backward_per_forward: see :func:`backward_time`.
        first_with_gradient: pass with which gradients begin; those before have a schedule of their own.
    """
    first = first_with_gradient
    queues = [
        deque(_order_of_passes(stage, num_stages, num_micro_batches, len(slots), first))
        for stage in range(num_stages)
    ]

    def needs(work: Work) -> Iterator[Work]:
        if num_stages > 1 and 0 < work.pass_index == first and work.stage == 0 and not work.is_backward:
            # All micro-batches are handed round before the next schedule begins.
            return (Work(num_stages - 1, first - 1, other, False) for other in range(num_micro_batches))
        return _needs(work, num_stages, len(slots))

    stages: list[list[Interval]] = [[] for _ in queues]
    ends: dict[Work, int] = {}
    while any(queues):
        for queue, done in zip(queues, stages, strict=True):
            while queue and all(need in ends for need in needs(queue[0])):
                work = queue.popleft()
                free = done[-1].end if done else 0
                start = max([free, *(ends[need] for need in needs(work))])
                ends[work] = start + _cost(work, slots, backward_per_forward)
                done.append(Interval(work, start, ends[work]))
    return Timeline(stages=tuple(map(tuple, stages)))


def flushing_timeline(
    num_stages: int,
    num_micro_batches: int,
    slots: Sequence[int],
    *,
    backward_per_forward: int = BACKWARD_PER_FORWARD,
    first_with_gradient: int = 0,
) -> Timeline:
    """Time the passes one by one: each starts when the one before has left the last stage.

    Args:
        num_stages, num_micro_batches, slots, backward_per_forward, first_with_gradient: see
            :func:`looping_timeline`.
    """
    stages: list[list[Interval]] = [[] for _ in range(num_stages)]
    begin = 0
    passes = range(len(slots))
    for index, is_backward in [
        *((p, False) for p in passes),
        *((p, True) for p in reversed(passes[first_with_gradient:])),
    ]:
        for stage, done in enumerate(stages):
            position = num_stages - 1 - stage if is_backward else stage
            for micro_batch in range(num_micro_batches):
                work = Work(stage, index, micro_batch, is_backward)
                cost = _cost(work, slots, backward_per_forward)
                start = begin + (position + micro_batch) * cost
                done.append(Interval(work, start, start + cost))
        begin = max(done[-1].end for done in stages)
    return Timeline(stages=tuple(map(tuple, stages)))


def _peak_held(intervals: Sequence[Interval]) -> int:
    rows: dict[tuple[int, int], int] = {}
    peak = 0
    with_backward = {interval.work.pass_index for interval in intervals if interval.work.is_backward}
    for interval in intervals:
        key = interval.work.pass_index, interval.work.micro_batch
        if interval.work.pass_index not in with_backward:
            continue
        if interval.work.is_backward:
            del rows[key]
        else:
            # Forward takes as long as it has rows.
            rows[key] = interval.end - interval.start
        peak = max(peak, sum(rows.values()))
    return peak


def _cost(work: Work, slots: Sequence[int], backward_per_forward: int) -> int:
    return slots[work.pass_index] * (backward_per_forward if work.is_backward else 1)


def _order_of_passes(
    stage: int, num_stages: int, num_micro_batches: int, num_passes: int, first: int
) -> list[Work]:
    """The order of a stage's work, the passes before the `first` with gradients forward only.

    With several stages those are a schedule of their own; with one they belong to their micro-batch.
    """
    if num_stages == 1:
        order = _one_stage_order(num_micro_batches, num_passes)
        return [work for work in order if work.pass_index >= first or not work.is_backward]
    forwards = [Work(stage, 0, micro_batch, False) for micro_batch in range(num_micro_batches)]
    if first > 1:
        table = get_schedule_table(num_micro_batches, first, num_stages)
        forwards = [Work(stage, index, micro_batch, False) for micro_batch, index in table]
    later = _stage_order(stage, num_stages, num_micro_batches, num_passes - first)
    shifted = [replace(work, pass_index=work.pass_index + first) for work in later]
    return [*(forwards if first > 0 else ()), *shifted]


def _stage_order(stage: int, num_stages: int, num_micro_batches: int, num_passes: int) -> list[Work]:
    """The order of a stage's work: warm-up forwards, forward and backward in turns, remaining backwards."""
    table = get_schedule_table(num_micro_batches, num_passes, num_stages)
    forwards = [Work(stage, index, micro_batch, False) for micro_batch, index in table]
    backwards = [Work(stage, num_passes - 1 - index, micro_batch, True) for micro_batch, index in table]
    place = SimpleNamespace(
        pp_group=SimpleNamespace(size=lambda: num_stages, rank=lambda: stage),
        virtual_pipeline_model_parallel_size=num_passes if num_passes > 1 else None,
    )
    _, _, num_warm_up, _ = get_pp_rank_microbatches(
        num_micro_batches, num_passes, num_stages, p2p_communicator=place
    )
    in_turns = zip(forwards[num_warm_up:], backwards, strict=False)
    return [
        *forwards[:num_warm_up],
        *(work for pair in in_turns for work in pair),
        *backwards[len(backwards) - num_warm_up :],
    ]


def _one_stage_order(num_micro_batches: int, num_passes: int) -> Iterator[Work]:
    for micro_batch in range(num_micro_batches):
        yield from (Work(0, index, micro_batch, False) for index in range(num_passes))
        yield from (Work(0, index, micro_batch, True) for index in reversed(range(num_passes)))


def _needs(work: Work, num_stages: int, num_passes: int) -> Iterator[Work]:
    """Yield the work whose result another piece of work needs; the very first forward needs none."""
    stage, index, micro_batch = work.stage, work.pass_index, work.micro_batch
    last = num_stages - 1
    if not work.is_backward:
        if stage > 0:
            yield Work(stage - 1, index, micro_batch, False)
        elif index > 0:
            yield Work(last, index - 1, micro_batch, False)
    elif stage < last:
        yield Work(stage + 1, index, micro_batch, True)
    elif index < num_passes - 1:
        yield Work(0, index + 1, micro_batch, True)
    else:
        yield Work(stage, index, micro_batch, False)
