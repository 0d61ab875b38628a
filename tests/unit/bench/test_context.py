"""Steps on one row cost time on every layout, and have one loss."""

from dataclasses import replace

import pytest

from pipeline.config.load import build_config
from tests.bench.context import LAYOUTS, ContextSizes, LayoutTimes, StepFigures, _check_losses, run_steps
from tests.support.ranks import run_alone

SMALL = ContextSizes(seq_length=16, hidden_size=16, num_layers=1, vocab_size=32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_a_run_of_at_most_two_ranks(layout: str) -> None:
    for sizes in (SMALL, ContextSizes(), ContextSizes(seq_length=32_768, hidden_size=512)):
        run = build_config(sizes.settings(layout))

        assert run.parallel.world_size == (1 if layout == "one rank" else 2)
        assert (run.training.seq_length, run.num_micro_batches) == (sizes.seq_length, 1)


def test_steps_are_timed_and_reproducible() -> None:
    first, second = (run_alone(run_steps, SMALL.settings("one rank"), number) for number in (1, 2))

    assert [step.loss for step in first] == [second[0].loss]
    assert second[1].loss < second[0].loss
    assert all(step.seconds > 0 < step.cpu_seconds for step in second)


def test_a_step_takes_as_long_as_its_slowest_rank() -> None:
    one, two = (LayoutTimes(layout="", num_ranks=ranks, loss=7.0) for ranks in (1, 2))
    step = StepFigures(seconds=2.0, cpu_seconds=1.5, loss=7.0)
    for seconds in (4.0, 8.0, 5.0):
        one.add([replace(step, seconds=seconds)])
        two.add([step, replace(step, seconds=3.0)])

    assert (two.seconds, two.cpu_seconds) == ([3.0] * 3, [3.0] * 3)
    assert two.share_of(one) == 3 / 5


@pytest.mark.parametrize("loss", [7.001, float("nan")])
def test_a_layout_with_another_loss_is_not_timed(loss: float) -> None:
    times = [LayoutTimes(layout=name, num_ranks=2, loss=7.0) for name in LAYOUTS]
    _check_losses(times)

    times[-1].loss = loss
    with pytest.raises(RuntimeError, match="context 2"):
        _check_losses(times)
