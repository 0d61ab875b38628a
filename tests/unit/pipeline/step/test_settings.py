"""Settings that change from step to step."""

from pathlib import Path

import pytest

from megatron_ext.model.micro_batch import ForwardSettings
from megatron_ext.ponder.passes import draw_jacobi_iterations, draw_latent_thoughts
from pipeline.config.load import load_config
from pipeline.step.settings import StepSettings, step_settings

ITERATIONS = range(12)
NOT_RANDOM = "ponder.random_jacobi_iterations=null"


def settings_at(
    repository: Path, method: str, iteration: int, *overrides: str, consumed_tokens: int = 0
) -> StepSettings:
    """Return the settings of one step of the method's tiny recipe."""
    recipe = repository / "pipeline" / "recipes" / f"tiny_{method}.yaml"
    config = load_config(recipe, ("ponder.penalty_ramp=[0,0]", *overrides))
    return step_settings(config, iteration=iteration, consumed_tokens=consumed_tokens)


def sweeps_of(repository: Path, *overrides: str) -> list[int]:
    return [
        settings_at(repository, "ponderlm2", iteration, *overrides).num_jacobi_iterations
        for iteration in ITERATIONS
    ]


def test_a_fixed_number_of_sweeps_never_changes(repository: Path) -> None:
    assert sweeps_of(repository, NOT_RANDOM, "ponder.num_jacobi_iterations=3") == [3] * 12


def test_random_sweeps_are_drawn_from_seed_and_step(repository: Path) -> None:
    drawn = sweeps_of(repository, "ponder.random_jacobi_iterations=[2,4]", "seed=77")

    assert drawn == [draw_jacobi_iterations(77, iteration, 2, 4) for iteration in ITERATIONS]
    assert set(drawn) == {2, 3, 4}
    assert drawn != sweeps_of(repository, "ponder.random_jacobi_iterations=[2,4]", "seed=78")


def test_scheduled_sweeps_follow_the_schedule(repository: Path) -> None:
    schedule = "ponder.jacobi_schedule=[[0,1],[4,3],[9,2]]"

    assert sweeps_of(repository, NOT_RANDOM, schedule) == [1] * 4 + [3] * 5 + [2] * 3


@pytest.mark.parametrize(
    "method", ["vanilla", "loop", "pause", "ponderlm", "adaponderlm", "adaptive_latent_cot"]
)
def test_methods_without_sweeps_make_none(repository: Path, method: str) -> None:
    assert settings_at(repository, method, 5).num_jacobi_iterations == 0


RAMP = "ponder.penalty_ramp=[4,8]"
WEIGHT = "ponder.penalty_weight=0.3"


@pytest.mark.parametrize(
    ("iteration", "share"), [(0, 0.0), (3, 0.0), (4, 0.0), (5, 0.25), (6, 0.5), (8, 1.0), (1000, 1.0)]
)
@pytest.mark.parametrize("penalty", ["expected_steps", "bottom_k"])
def test_ponderlm3_raises_lambda_and_keeps_q(
    repository: Path, penalty: str, iteration: int, share: float
) -> None:
    found = settings_at(repository, "ponderlm3", iteration, RAMP, WEIGHT, f"ponder.penalty={penalty}")

    assert found.penalty_weight == pytest.approx(0.3 * share)
    assert found.bottom_k_fraction == 0.25


@pytest.mark.parametrize(("iteration", "weight"), [(0, 0.1), (4, 0.1), (5, 0.15), (8, 0.3), (99, 0.3)])
def test_lambda_may_start_above_zero(repository: Path, iteration: int, weight: float) -> None:
    found = settings_at(repository, "ponderlm3", iteration, RAMP, WEIGHT, "ponder.penalty_start_weight=0.1")

    assert found.penalty_weight == pytest.approx(weight)


@pytest.mark.parametrize(
    ("iteration", "weight", "share"),
    [
        (0, 0.0, 0.0),
        (3, 0.0, 0.0),
        (4, 0.1, 0.0),
        (5, 0.1, 0.25),
        (6, 0.1, 0.5),
        (8, 0.1, 1.0),
        (99, 0.1, 1.0),
    ],
)
def test_adaponderlm_has_the_full_lambda_from_the_start_of_the_ramp_and_raises_q(
    repository: Path, iteration: int, weight: float, share: float
) -> None:
    found = settings_at(repository, "adaponderlm", iteration, RAMP, "ponder.bottom_k_fraction=0.2")

    assert found.penalty_weight == pytest.approx(weight)
    assert found.bottom_k_fraction == pytest.approx(0.2 * share)


def test_adaptive_latent_cot_raises_lambda(repository: Path) -> None:
    weights = [
        settings_at(repository, "adaptive_latent_cot", iteration, RAMP).penalty_weight
        for iteration in (0, 4, 6, 8, 99)
    ]

    assert weights == pytest.approx([0.0, 0.0, 0.05, 0.1, 0.1])


@pytest.mark.parametrize("method", ["ponderlm3", "adaponderlm"])
def test_without_a_ramp_the_penalty_is_full_from_the_start(repository: Path, method: str) -> None:
    found = settings_at(repository, method, 0, "ponder.penalty_weight=0.7", "ponder.bottom_k_fraction=0.2")

    assert (found.penalty_weight, found.bottom_k_fraction) == (0.7, 0.2)


@pytest.mark.parametrize("method", ["ponderlm3", "adaponderlm", "adaptive_latent_cot"])
def test_the_backbone_is_frozen_until_so_many_tokens_are_consumed(repository: Path, method: str) -> None:
    frozen = [
        settings_at(
            repository, method, 7, "ponder.freeze_backbone_tokens=1000", consumed_tokens=consumed
        ).freezes_backbone
        for consumed in (0, 999, 1000, 5000)
    ]

    assert frozen == [True, True, False, False]


def test_nothing_is_frozen_by_default(repository: Path) -> None:
    assert not settings_at(repository, "ponderlm3", 0).freezes_backbone


def test_the_forward_gets_its_part_of_the_settings(repository: Path) -> None:
    settings = settings_at(repository, "adaponderlm", 6, RAMP, "ponder.bottom_k_fraction=0.2")

    assert settings.forward == ForwardSettings(num_jacobi_iterations=0, bottom_k_fraction=0.1)


def test_a_blended_start_and_held_decisions_follow_the_iteration(repository: Path) -> None:
    start = ("ponder.blended_start_iterations=4", "ponder.held_decisions_iterations=8")

    found = [settings_at(repository, "ponderlm3", iteration, WEIGHT, *start) for iteration in ITERATIONS]

    assert [one.pondering_share for one in found] == [0, 0.25, 0.5, 0.75] + [1] * 8
    assert [one.holds_decisions for one in found] == [True] * 8 + [False] * 4
    assert [one.penalty_weight for one in found] == [0.0] * 8 + [0.3] * 4
    assert (found[1].forward.pondering_share, found[1].forward.holds_decisions) == (0.25, True)


def thoughts_of(repository: Path, *overrides: str) -> list[int | None]:
    return [
        settings_at(
            repository, "ponderlm2", iteration, "ponder.num_latent_thoughts=3", *overrides
        ).limits.num_steps
        for iteration in ITERATIONS
    ]


def test_random_thoughts_are_drawn_from_seed_and_step(repository: Path) -> None:
    drawn = thoughts_of(repository, "ponder.random_latent_thoughts=[0,3]", "seed=77")

    assert drawn == [draw_latent_thoughts(77, iteration, 0, 3) for iteration in ITERATIONS]
    assert len(set(drawn)) > 2
    assert drawn != [draw_jacobi_iterations(77, iteration, 0, 3) for iteration in ITERATIONS]


def test_scheduled_thoughts_follow_the_schedule(repository: Path) -> None:
    assert (
        thoughts_of(repository, "ponder.thoughts_schedule=[[0,0],[4,2],[9,3]]") == [0] * 4 + [2] * 5 + [3] * 3
    )
    assert thoughts_of(repository) == [None] * 12


def test_a_blended_start_begins_where_the_schedule_first_gives_extra_steps(repository: Path) -> None:
    start = ("ponder.blended_start_iterations=4", "ponder.held_decisions_iterations=2")
    schedule = "ponder.thoughts_schedule=[[0,0],[5,1],[7,3]]"
    steps = [settings_at(repository, "ponderlm3", iteration, *start, schedule) for iteration in ITERATIONS]

    assert [step.pondering_share for step in steps] == [0.0] * 6 + [0.25, 0.5, 0.75] + [1.0] * 3
    assert [step.holds_decisions for step in steps] == [True] * 7 + [False] * 5


def test_training_takes_its_passes_with_gradients_and_its_tolerance_from_the_settings(
    repository: Path,
) -> None:
    plain = settings_at(repository, "ponderlm2", 5)
    given = settings_at(repository, "ponderlm2", 5, "ponder.gradient_passes=2", "ponder.sweep_tolerance=0.25")
    skipping = settings_at(repository, "ponderlm3", 5, "ponder.skip_pruned_rows=true")

    assert (plain.forward.gradient_passes, plain.forward.sweep_tolerance) == (None, None)
    assert (plain.forward.skips_pruned_rows, skipping.forward.skips_pruned_rows) == (False, True)
    assert (given.forward.gradient_passes, given.forward.sweep_tolerance) == (2, 0.25)
