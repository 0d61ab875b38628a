"""Loss and cost of a ladder's runs, read from their files."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from pipeline.config.load import dump_config, load_config
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account
from pipeline.evaluation.compare.curve import CURVE_FILE, PruningCurve, save_curve
from pipeline.metrics import names
from pipeline.metrics.records import DecodingSpeed, LossPoint
from pipeline.shared.errors import DataError
from scripts.ladder.points import points_of
from scripts.ladder.results import RunResult
from scripts.ladder.times import TIMES_FILE, TimedPoint, load_times

SPEED = DecodingSpeed(
    batch_size=1,
    milliseconds_per_token=4.0,
    tokens_per_second=250.0,
    mean_steps=1.0,
    flops_per_token=2.0,
    gain_reached=None,
)


def config_of(method: str, num_thoughts: int, *more: str) -> RunConfig:
    settings = (
        *(f"ponder.method={method}", f"ponder.num_latent_thoughts={num_thoughts}"),
        *("training.train_iters=1", "optimizer.lr=1.0e-3", *more),
    )
    return load_config(Path("scripts/ladder/s_recipe.yaml"), settings)


def run_of(folder: Path, config: RunConfig, loss: float, **evaluation: object) -> RunResult:
    dump_config(config, folder / "run_config.yaml")
    settings = {"ponder.num_latent_thoughts": config.ponder.num_latent_thoughts}
    record = {"settings": settings, "evaluation": {names.LM_LOSS_VALIDATION: loss, **evaluation}}
    return RunResult(folder=folder, record=record)


def sweep(*points: tuple[float, float, float]) -> list[dict[str, object]]:
    return [
        {"kind": "steps", "value": at, "loss": loss, "mean-steps": steps, "flops-per-token": flops}
        for at, (loss, steps, flops) in enumerate(points)
    ]


def save_points(folder: Path, points: tuple[LossPoint, ...], baseline: tuple[LossPoint, ...] = ()) -> None:
    curve = PruningCurve(
        name="run",
        method="ponderlm3",
        num_latent_thoughts=2,
        iteration=1,
        num_jacobi_iterations=1,
        num_global_batches=1,
        num_tokens=9,
        unigram_entropy=1.0,
        points=points,
        baseline=baseline,
    )
    save_curve(curve, folder / CURVE_FILE)


def test_a_mixture_costs_all_the_steps_that_it_reads(tmp_path: Path) -> None:
    config = config_of("ponderlm3", 2)
    # What pruning would leave out, as some versions recorded it.
    recorded = sweep((3.0, 0.0, 1.0), (2.0, 0.9, 2.0), (1.5, 1.2, 2.5))
    run = run_of(tmp_path, config, 1.5, **{names.EVAL_SWEEP: recorded, names.MEAN_STEPS: 1.2})

    points = points_of(run)

    assert [(point.step_limit, point.loss, point.mean_steps) for point in points] == [
        (0, 3.0, 0.0),
        (1, 2.0, 1.0),
        (2, 1.5, 2.0),
    ]
    account = flops_account(config, 2048)
    assert points[2].flops_per_token == account.inference_per_token(2.0)
    assert points[1].flops_per_token == account.limited_to(1).inference_per_token(1.0)


def test_tokens_that_halt_in_every_evaluation_cost_what_was_counted(tmp_path: Path) -> None:
    counted = {names.EVAL_SWEEP: sweep((3.0, 0.0, 1.0), (2.0, 0.9, 2.0), (1.5, 1.2, 2.5))}
    whole = {names.MEAN_STEPS: 1.2, names.FLOPS_PER_TOKEN_INFER: 2.5}
    run = run_of(tmp_path, config_of("adaponderlm", 2), 1.5, **counted, **whole)

    costs = [(point.mean_steps, point.flops_per_token) for point in points_of(run)]

    assert costs == [(0.0, 1.0), (0.9, 2.0), (1.2, 2.5)]


def test_a_run_without_steps_is_one_point(tmp_path: Path) -> None:
    run = run_of(tmp_path, config_of("ponderlm2", 0), 1.5)

    (point,) = points_of(run)

    assert (point.step_limit, point.loss, point.mean_steps, point.speeds) == (0, 1.5, 0.0, ())


def test_measured_points_of_budgets_follow_those_of_steps_and_have_their_times(tmp_path: Path) -> None:
    cost = {"mean_steps": 1.0, "flops_per_token": 1.0}
    own = LossPoint(pruning_threshold=0.1, budget="80%", loss=1.7, **cost)
    other = LossPoint(pruning_threshold=2.0, signal="entropy", budget="80%", loss=1.8, **cost)
    limited = LossPoint(step_limit=1, loss=2.1, **cost)
    save_points(tmp_path, (replace(own, budget=None), limited, own), (other,))
    timed = TimedPoint(step_limit=None, budget="80%", signal="entropy", speed=SPEED)
    (tmp_path / TIMES_FILE).write_bytes(TypeAdapter(list[TimedPoint]).dump_json([timed]))
    run = run_of(tmp_path, config_of("ponderlm3", 2), 1.5)

    points = points_of(run)

    assert points[2:] == (own, replace(other, speeds=(SPEED,)))
    assert [(point.step_limit, point.loss, point.speeds) for point in points[:2]] == [
        (1, 2.1, ()),
        (2, 1.5, ()),
    ]


def test_a_file_of_times_that_is_not_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / TIMES_FILE).write_text("[1]")

    with pytest.raises(DataError):
        load_times(tmp_path)


def test_a_recipe_must_tell_the_size_of_its_vocabulary(tmp_path: Path) -> None:
    run = run_of(tmp_path, config_of("ponderlm2", 0, "model.vocab_size=null"), 1.5)

    with pytest.raises(DataError, match=r"model\.vocab_size"):
        points_of(run)
