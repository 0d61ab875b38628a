import math

import pytest

from pipeline.config.schema import DivergenceConfig
from pipeline.step.divergence import Finding, FindingKind, judge, losses_to_remember

WITHOUT_SPIKES = DivergenceConfig()
SPIKES = DivergenceConfig(spike_factor=2.0, spike_window=3, on_spike="stop")
RECENT = (2.0, 9.0, 3.0)


@pytest.mark.parametrize(
    ("loss", "grad_norm"),
    [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf), (2.0, None), (math.nan, None)],
)
def test_what_is_not_finite_is_found(loss: float, grad_norm: float | None) -> None:
    finding = judge(loss, grad_norm, (), WITHOUT_SPIKES)
    assert finding is not None
    assert finding.kind is FindingKind.NONFINITE


@pytest.mark.parametrize(
    ("loss", "recent", "is_found"),
    [(6.0, RECENT, False), (6.01, RECENT, True), (100.0, RECENT[:2], False), (7.0, (9.0, *RECENT), True)],
)
def test_a_spike_is_a_loss_above_a_multiple_of_the_median(
    loss: float, recent: tuple[float, ...], is_found: bool
) -> None:
    finding = judge(loss, 1.0, recent, SPIKES)
    assert (finding is not None and finding.kind is FindingKind.SPIKE) == is_found
    assert judge(loss, 1.0, recent, WITHOUT_SPIKES) is None


def test_each_kind_has_its_own_action() -> None:
    nonfinite, spike = (Finding(kind=kind, text="") for kind in FindingKind)
    assert (nonfinite.is_skipped(SPIKES), spike.is_skipped(SPIKES)) == (True, False)


def test_as_many_losses_are_remembered_as_a_judgement_needs() -> None:
    assert losses_to_remember(RECENT, 4.0, SPIKES) == (9.0, 3.0, 4.0)
    assert losses_to_remember(RECENT, 4.0, WITHOUT_SPIKES) == ()
