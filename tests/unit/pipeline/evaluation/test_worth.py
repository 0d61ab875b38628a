"""Loss and cost with all steps, with fewer, and with none."""

import pytest

from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.step_limits import StepLimits
from pipeline.evaluation.worth import worth_of_steps
from tests.support.heldout_text import text_of


@pytest.mark.parametrize("name", ["ponderlm3, llama", "adaponderlm, llama", "adaptive_latent_cot, llama"])
def test_steps_are_worth_what_evaluations_under_these_limits_find(groups: ParallelGroups, name: str) -> None:
    text = text_of(groups, name)
    tau = text.opened.config.ponder.pruning_threshold

    points = worth_of_steps(text, timing=False)

    ways = (StepLimits(threshold=0.0), StepLimits(threshold=tau), StepLimits(num_steps=0))
    assert points == tuple(text.point(text.evaluate(limits)) for limits in ways)
    whole, pruned, none = points
    assert (whole.mean_steps, none.mean_steps) == (2.0, 0.0)
    assert none.flops_per_token < pruned.flops_per_token <= whole.flops_per_token


def test_a_method_that_does_not_halt_has_no_such_points(groups: ParallelGroups) -> None:
    assert worth_of_steps(text_of(groups, "ponderlm2, llama"), timing=False) == ()
