"""Budgets met on held-out text, and halting by a signal beside the learned one."""

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.step_limits import UNLIMITED, HaltingSignal, StepLimits
from pipeline.evaluation.budget import Budget
from pipeline.evaluation.stored_budgets import BUDGETS_FILE, met_budget
from pipeline.shared.errors import CheckpointError, DataError
from tests.support.heldout_text import text_of

LEARNED = ("ponderlm3, llama", "adaponderlm, llama", "adaptive_latent_cot, llama")
THINKING = ("ponderlm2, llama", "ponderlm3, llama")
ROUTER = StepLimits()


@pytest.mark.parametrize("name", LEARNED)
def test_steps_are_those_whose_score_reaches_the_threshold(groups: ParallelGroups, name: str) -> None:
    result = text_of(groups, name).evaluate(StepLimits(threshold=0.3))

    assert result.scores is not None
    assert result.steps_count is not None
    steps = (result.scores >= 0.3).sum(axis=1)
    assert result.steps_count == np.bincount(steps, minlength=3).tolist()
    assert (np.diff(result.scores, axis=1) <= 0).all()


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("budget", ["1.2", "70%"])
def test_a_budget_is_met_and_spent(groups: ParallelGroups, name: str, budget: str) -> None:
    text, wanted = text_of(groups, name), Budget.parse(budget)

    result = text.meet(wanted, ROUTER)
    spent, dearer = text.spending(result), Budget.parse("1.1" if budget == "1.2" else "64%")

    assert spent.fits(wanted)
    # A token in a hundred is all that the search leaves unspent.
    assert not spent.fits(dearer)
    point = text.point(result, budget=wanted)
    assert (point.budget, point.pruning_threshold) == (budget, result.limits.threshold)
    assert point.flops_per_token == pytest.approx(spent.flops_per_token)
    assert point.mean_steps == spent.mean_steps


@pytest.mark.parametrize("name", LEARNED)
def test_a_budget_for_everything_prunes_nothing(groups: ParallelGroups, name: str) -> None:
    text = text_of(groups, name)

    result = text.meet(Budget(flops_share=1.0), ROUTER)

    assert result.limits.threshold == 0
    assert text.spending(result).mean_steps == 2


def test_a_budget_below_the_cost_of_no_steps_is_refused(groups: ParallelGroups) -> None:
    with pytest.raises(DataError, match="1%"):
        text_of(groups, "ponderlm3, llama").meet(Budget(flops_share=0.01), ROUTER)


@pytest.mark.parametrize("name", THINKING)
def test_a_signal_that_ends_nothing_gives_the_loss_of_the_training_forward(
    groups: ParallelGroups, name: str
) -> None:
    text = text_of(groups, name)
    own = UNLIMITED if name == "ponderlm2, llama" else StepLimits(threshold=0.0)

    forward = text.evaluate(own)
    read = text.record(StepLimits(signal=HaltingSignal.ENTROPY))

    assert read.num_tokens == forward.num_tokens
    assert read.loss == pytest.approx(forward.loss, rel=1e-5)


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("signal", list(HaltingSignal))
def test_a_signal_meets_a_budget(groups: ParallelGroups, name: str, signal: HaltingSignal) -> None:
    text, budget = text_of(groups, name), Budget(mean_steps=1.5)

    result = text.meet(budget, StepLimits(signal=signal))
    spent = text.spending(result)

    assert spent.fits(budget)
    assert spent.mean_steps > 1.3
    assert result.limits.signal is signal
    whole = text.record(StepLimits(signal=signal))
    assert text.spending(whole).flops_per_token > spent.flops_per_token
    assert result.loss != whole.loss


def test_judging_a_prediction_costs_a_head_for_each_token_that_goes_on(groups: ParallelGroups) -> None:
    text = text_of(groups, "ponderlm2, llama")
    by_entropy = text.spending(text.record(StepLimits(signal=HaltingSignal.ENTROPY)))
    by_convergence = text.spending(text.record(StepLimits(signal=HaltingSignal.CONVERGENCE)))

    head = 2 * text.account.shape.vocabulary_weights
    assert by_entropy.flops_per_token - by_convergence.flops_per_token == pytest.approx(head)
    assert by_convergence.flops_share == pytest.approx(1)


def test_a_threshold_is_stored_and_found_again(groups: ParallelGroups, tmp_path: Path) -> None:
    text = text_of(groups, "ponderlm3, llama", tmp_path)
    file = tmp_path / BUDGETS_FILE

    found = met_budget(text, Budget(mean_steps=1.2), ROUTER)
    changed = file.read_text().replace(str(found.threshold), "0.125")
    file.write_text(changed)
    again = met_budget(text, Budget(mean_steps=1.2), ROUTER)
    other = met_budget(text, Budget(mean_steps=0.5), ROUTER)

    assert found.limits == StepLimits(threshold=found.threshold)
    assert found.mean_steps <= 1.2
    assert again.threshold == 0.125
    assert other.threshold > found.threshold
    assert again == met_budget(text, Budget(mean_steps=1.2), ROUTER)

    file.write_text("[]")
    with pytest.raises(CheckpointError, match=BUDGETS_FILE):
        met_budget(text, Budget(mean_steps=1.2), ROUTER)
