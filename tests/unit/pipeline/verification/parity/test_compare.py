import math

import pytest

from pipeline.verification.parity.compare import FIRST_STEP, Measured, StepParity, compare


def steps(*pairs: tuple[float, float]) -> list[Measured]:
    return [Measured(loss=loss, grad_norm=norm) for loss, norm in pairs]


def compared(
    expected: tuple[float, float], found: tuple[float, float], precision: str = "fp32"
) -> StepParity:
    return compare(steps(expected), steps(found), precision=precision)[0]


def test_equal_steps_pass_with_no_difference() -> None:
    step = compared((4.0, 2.0), (4.0, 2.0))

    assert (step.loss_difference, step.grad_norm_difference, step.share_of_band) == (0.0, 0.0, 0.0)
    assert step.passes


def test_differences_are_relative_to_one_process() -> None:
    step = compared((4.0, 2.0), (4.0 + 4e-6, 2.0 - 1e-6))

    assert step.loss_difference == pytest.approx(1e-6, rel=1e-3)
    assert step.grad_norm_difference == pytest.approx(5e-7, rel=1e-3)
    assert step.share_of_band == pytest.approx(0.5, rel=1e-3)
    assert step.passes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_either_difference_beyond_its_band_fails(precision: str) -> None:
    band = FIRST_STEP[precision]
    inside = (1 + 0.9 * band.loss, 1 + 0.9 * band.grad_norm)

    assert compared((1.0, 1.0), inside, precision).passes
    assert not compared((1.0, 1.0), (1 + 1.1 * band.loss, 1.0), precision).passes
    assert not compared((1.0, 1.0), (1.0, 1 - 1.1 * band.grad_norm), precision).passes


def test_a_gradient_that_is_not_averaged_over_ranks_fails_in_both_precisions() -> None:
    for precision in ("fp32", "bf16"):
        assert not compared((4.0, 2.0), (4.0, 4.0), precision).passes


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ((4.0, math.nan), (4.0, math.nan)),
        ((4.0, 1.0), (math.nan, 1.0)),
        ((4.0, 1.0), (4.0, math.inf)),
        ((4.0, 0.0), (4.0, 1e-9)),
    ],
)
def test_what_is_not_a_number_or_has_no_measure_fails(
    expected: tuple[float, float], found: tuple[float, float]
) -> None:
    assert not compared(expected, found).passes


def test_the_band_widens_by_a_tenth_per_step() -> None:
    compared_steps = compare(steps(*[(1.0, 1.0)] * 3), steps(*[(1.0, 1.0)] * 3), precision="fp32")

    assert [step.step for step in compared_steps] == [1, 2, 3]
    norms = [step.band.grad_norm for step in compared_steps]
    assert norms == pytest.approx([2e-6, 2.2e-6, 2.42e-6])


def test_with_muon_the_band_is_that_of_its_updates_once_there_was_one() -> None:
    compared_steps = compare(
        steps(*[(1.0, 1.0)] * 2), steps(*[(1.0, 1.0)] * 2), precision="fp32", optimizer="muon"
    )

    assert [step.band for step in compared_steps] == [FIRST_STEP["fp32"], FIRST_STEP["bf16"].at(2)]


def test_trainings_of_different_length_cannot_be_compared() -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        compare(steps((1.0, 1.0)), steps((1.0, 1.0), (1.0, 1.0)), precision="fp32")
