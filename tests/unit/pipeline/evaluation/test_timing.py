"""Times of decoding, with a made-up clock."""

from collections.abc import Callable, Iterator

import pytest

from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.step_limits import StepLimits
from pipeline.evaluation import timing
from pipeline.evaluation.timing import NUM_ROUNDS, decoding_speeds
from tests.support.heldout_text import text_of

NO_STEPS = StepLimits(num_steps=0)


def test_a_gain_is_that_of_the_median_round(groups: ParallelGroups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "heldout_tokens", lambda *_, **__: [[1, 2, 3, 4]])
    opened = text_of(groups, "ponderlm3, llama").opened
    # The machine is slower in each round than in the one before; 10, 20, … % of its time are saved.
    whole = [float(10 * (turn + 1)) for turn in range(NUM_ROUNDS)]
    limited = [seconds * (1 - 0.1 * (turn + 1)) for turn, seconds in enumerate(whole)]

    ((all_steps,), (none,)) = decoding_speeds(
        opened, [StepLimits(threshold=0.0), NO_STEPS], batch_sizes=(1,), clock=_clock(whole, limited)
    )

    saved = 1 - none.flops_per_token / all_steps.flops_per_token
    assert (all_steps.gain_reached, all_steps.gain_range, all_steps.gain) == (None, None, "")
    assert none.gain_reached == pytest.approx(0.5 / saved)
    assert none.gain_range == pytest.approx((0.3 / saved, 0.7 / saved))
    assert none.gain == f"{0.5 / saved:.0%} ({0.3 / saved:.0%} to {0.7 / saved:.0%})"


def _clock(whole: list[float], limited: list[float]) -> Callable[[], float]:
    """Return a clock that shows these times of the rounds, after a first one that does not count."""
    durations = [1000.0, 1000.0]
    for turn, (long, short) in enumerate(zip(whole, limited, strict=True), start=1):
        # The ways take turns in going first.
        durations += [long, short] if turn % 2 == 0 else [short, long]
    times = _times(durations)
    return lambda: next(times)


def _times(durations: list[float]) -> Iterator[float]:
    now = 0.0
    for seconds in durations:
        yield now
        now += seconds
        yield now
