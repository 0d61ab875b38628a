import math

import pytest

from megatron_ext.ponder.config import Method
from pipeline.cost.flops import FlopsAccount
from pipeline.metrics.ponder_scalars import (
    active_fractions,
    contraction,
    fractions,
    jacobi_residuals,
    mean_loss,
    mean_steps_of,
    ponder_scalars,
    tail_masses,
)
from tests.unit.pipeline.metrics.records import SHAPE

ADAPONDERLM = FlopsAccount(shape=SHAPE, method=Method.ADAPONDERLM, num_latent_thoughts=2, mixture="softmax")
PONDERLM3 = FlopsAccount(shape=SHAPE, method=Method.PONDERLM3, num_latent_thoughts=2)

# Ten tokens: five halt at step 0, three at 1, two at 2; eight have a label.
SUMS = {
    "real_tokens": [10.0],
    "labelled_tokens": [8.0],
    "nll": [24.0],
    "residual_change": [4.0, 1.0, 0.25],
    "residual_norm": [16.0, 16.0, 16.0],
    "steps_count": [5.0, 3.0, 2.0],
    "tail_mass": [10.0, 4.0, 1.0],
    "router_entropy": [7.0],
    "measured_tokens": [8.0],
    "step_nll": [32.0, 24.0, 20.0],
    "one_more_nll": [22.0],
    "penalty": [2.5],
    "nll_by_steps": [6.0, 18.0, 0.0],
    "labelled_by_steps": [5.0, 3.0, 0.0],
}


def test_an_adaptive_penalty_shows_accuracies_and_shares() -> None:
    sums = {**SUMS, "accuracy": [2.0, 4.0, 6.0], "penalised_share": [2.5, 5.0]}

    scalars = ponder_scalars(sums, num_jacobi_iterations=3.0, penalty_weight=0.3, flops=PONDERLM3)

    # Of eight tokens with labels, and of ten real ones.
    assert [scalars[f"ponder/accuracy/step_{step}"] for step in range(3)] == [0.25, 0.5, 0.75]
    assert [scalars[f"ponder/penalised-share/step_{step}"] for step in (1, 2)] == [0.25, 0.5]
    assert "ponder/penalised-share/step_0" not in scalars


def test_every_curve_of_a_hand_made_batch() -> None:
    scalars = ponder_scalars(SUMS, num_jacobi_iterations=3.0, penalty_weight=0.3, flops=PONDERLM3)
    expected = {
        "ponder/mean-steps": 0.7,
        "ponder/halt-fraction/step_0": 0.5,
        "ponder/halt-fraction/step_1": 0.3,
        "ponder/halt-fraction/step_2": 0.2,
        "ponder/active-fraction/step_0": 1.0,
        "ponder/active-fraction/step_1": 0.5,
        "ponder/active-fraction/step_2": 0.2,
        "ponder/tail-mass/step_0": 1.0,
        "ponder/tail-mass/step_1": 0.4,
        "ponder/tail-mass/step_2": 0.1,
        "ponder/pruned-fraction/step_1": 0.5,
        "ponder/pruned-fraction/step_2": 0.8,
        "ponder/router-entropy": 0.7,
        "ponder/step-nll/step_0": 4.0,
        "ponder/step-nll/step_1": 3.0,
        "ponder/step-nll/step_2": 2.5,
        "ponder/one-more-step-nll": 2.75,
        "ponder/penalty": 0.25,
        "ponder/penalty-weight": 0.3,
        "ponder/nll-by-steps/step_0": 1.2,
        "ponder/nll-by-steps/step_1": 6.0,
        "ponder/jacobi-iterations": 3.0,
        "ponder/jacobi-residual/sweep_1": 0.5,
        "ponder/jacobi-residual/sweep_2": 0.25,
        "ponder/jacobi-residual/sweep_3": 0.125,
        "ponder/contraction": 0.5,
        "ponder/flops-per-token-train": PONDERLM3.training_per_token(3.0),
        "ponder/flops-per-token-infer": PONDERLM3.inference_per_token(0.7),
        "ponder/flops-saved": PONDERLM3.saved_fraction(0.7),
    }
    assert scalars == pytest.approx(expected)


def test_every_curve_of_a_hand_made_batch_of_adaponderlm() -> None:
    of_router = {"residual_change", "residual_norm", "tail_mass", "router_entropy"}
    sums = {name: values for name, values in SUMS.items() if name not in of_router}
    scalars = ponder_scalars(
        sums | {"gate_mean": [9.0, 0.5]}, num_jacobi_iterations=0.0, penalty_weight=0.1, flops=ADAPONDERLM
    )
    expected = {
        "ponder/mean-steps": 0.7,
        "ponder/halt-fraction/step_0": 0.5,
        "ponder/halt-fraction/step_1": 0.3,
        "ponder/halt-fraction/step_2": 0.2,
        "ponder/active-fraction/step_0": 1.0,
        "ponder/active-fraction/step_1": 0.5,
        "ponder/active-fraction/step_2": 0.2,
        "ponder/gate/iteration_0": 0.9,
        "ponder/gate/iteration_1": 0.05,
        "ponder/penalty": 0.25,
        "ponder/penalty-weight": 0.1,
        "ponder/nll-by-steps/step_0": 1.2,
        "ponder/nll-by-steps/step_1": 6.0,
        "ponder/flops-per-token-train": ADAPONDERLM.training_per_token(0.0),
        "ponder/flops-per-token-infer": ADAPONDERLM.inference_per_token(0.7, shares=(0.5, 0.3, 0.2)),
        "ponder/flops-saved": ADAPONDERLM.saved_fraction(0.7, shares=(0.5, 0.3, 0.2)),
    }
    assert scalars == pytest.approx(expected)


def test_the_router_is_averaged_over_the_tokens_that_it_was_asked_about() -> None:
    sums = {name: SUMS[name] for name in ("real_tokens", "labelled_tokens", "nll", "steps_count")}
    sums |= {"penalty": [2.0], "nll_by_steps": [0.0] * 3, "labelled_by_steps": [0.0] * 3}
    account = FlopsAccount(shape=SHAPE, method=Method.ADAPTIVE_LATENT_COT, num_latent_thoughts=2)

    # Ten tokens were asked after step 0, the five that went on after step 1.
    scalars = ponder_scalars(
        sums | {"continue_probability": [6.0, 2.0]},
        num_jacobi_iterations=0.0,
        penalty_weight=0.1,
        flops=account,
    )

    assert scalars["ponder/continue-probability/step_0"] == pytest.approx(0.6)
    assert scalars["ponder/continue-probability/step_1"] == pytest.approx(0.4)
    nobody = sums | {"steps_count": [10.0, 0.0, 0.0], "continue_probability": [1.0, 0.0]}
    scalars = ponder_scalars(nobody, num_jacobi_iterations=0.0, penalty_weight=0.1, flops=account)
    assert "ponder/continue-probability/step_1" not in scalars


def test_a_method_that_does_not_halt_has_no_halting_curves() -> None:
    sums = {name: SUMS[name] for name in ("real_tokens", "labelled_tokens", "nll")}
    vanilla = FlopsAccount(shape=SHAPE, method=Method.VANILLA)
    scalars = ponder_scalars(sums, num_jacobi_iterations=0.0, penalty_weight=0.0, flops=vanilla)
    assert scalars.keys() == {"ponder/flops-per-token-train", "ponder/flops-per-token-infer"}


def test_an_interval_without_tokens_has_no_halting_curves() -> None:
    empty = {name: [0.0] * len(values) for name, values in SUMS.items()}
    scalars = ponder_scalars(empty, num_jacobi_iterations=3.0, penalty_weight=0.3, flops=PONDERLM3)
    assert "ponder/mean-steps" not in scalars
    assert math.isnan(mean_loss(empty))


def test_mean_loss_counts_labelled_tokens_only() -> None:
    assert mean_loss(SUMS) == 3.0


def test_sweeps_that_did_not_run_have_no_residual() -> None:
    sums = {"residual_change": [4.0, 0.0], "residual_norm": [16.0, 0.0]}
    assert jacobi_residuals(sums) == [0.5]


@pytest.mark.parametrize(
    ("residuals", "expected"),
    [([], None), ([0.5], None), ([0.5, 0.0], None), ([0.8, 0.2], 0.25), ([1.0, 0.1, 0.09], 0.3)],
)
def test_contraction_is_the_geometric_mean_of_ratios(residuals: list[float], expected: float | None) -> None:
    assert contraction(residuals) == (None if expected is None else pytest.approx(expected))


def test_shares_of_nothing_are_zero() -> None:
    assert fractions([0.0, 0.0]) == [0.0, 0.0]
    assert active_fractions([0.0, 0.0]) == [0.0, 0.0]
    assert mean_steps_of([]) == 0.0


def test_what_was_not_measured_has_no_curve() -> None:
    sums = SUMS | {"measured_tokens": [0.0]}

    scalars = ponder_scalars(sums, num_jacobi_iterations=3.0, penalty_weight=0.3, flops=PONDERLM3)

    assert not any("step-nll" in tag for tag in scalars)
    assert tail_masses(scalars) == [1.0, 0.4, 0.1]
    assert tail_masses({}) == []
