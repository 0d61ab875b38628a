"""The fitted law of residuals, and the sweeps that tolerances need."""

import pytest

from pipeline.evaluation.convergence.result import Contraction, fitted_contraction, needed_sweeps
from pipeline.evaluation.convergence.table import position_bins

GEOMETRIC = [0.5 * 0.3**sweep for sweep in range(1, 6)]


def test_the_law_of_a_geometric_sequence_is_found() -> None:
    law = fitted_contraction(GEOMETRIC)

    assert law is not None
    assert law.factor == pytest.approx(0.3)
    assert law.start == pytest.approx(0.5)


def test_residuals_that_are_only_rounding_do_not_count() -> None:
    assert fitted_contraction([*GEOMETRIC, 1e-7, 3e-7, 2e-7]) == fitted_contraction(GEOMETRIC)
    assert fitted_contraction([1e-3, 1e-8]) is None
    assert fitted_contraction([float("nan"), 1e-3]) is None


def test_sweeps_are_those_measured_or_those_of_the_law() -> None:
    law = fitted_contraction(GEOMETRIC)

    measured = needed_sweeps(GEOMETRIC, law, 0.02)
    beyond = needed_sweeps(GEOMETRIC, law, 1e-5)

    # 0.15, 0.045, 0.0135
    assert (measured.num_sweeps, measured.is_extrapolated) == (3, False)
    assert beyond.is_extrapolated
    assert beyond.num_sweeps is not None
    assert 0.5 * 0.3**beyond.num_sweeps <= 1e-5 < 0.5 * 0.3 ** (beyond.num_sweeps - 1)


def test_sweeps_that_do_not_contract_never_get_there() -> None:
    growing = [0.1, 0.2, 0.4]

    assert needed_sweeps(growing, fitted_contraction(growing), 0.01).num_sweeps is None
    assert needed_sweeps([0.1], None, 0.01).num_sweeps is None
    assert Contraction(factor=0.5, start=1e-3).sweeps_for(1e-2) == 0


def test_bins_of_positions_double_in_length_and_cover_all() -> None:
    bins = position_bins(21)

    assert [position for one in bins for position in one] == list(range(21))
    assert [len(one) for one in bins] == [1, 1, 2, 4, 8, 5]
    assert position_bins(1) == [range(1)]
