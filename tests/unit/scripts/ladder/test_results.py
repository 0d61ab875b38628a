"""Mean and spread of a ladder's rows."""

import json
from pathlib import Path

import pytest

from pipeline.evaluation.compare.curve import PruningCurve
from pipeline.metrics import names
from pipeline.metrics.jsonl import METRICS_FILE, TRAINING
from pipeline.metrics.records import DecodingSpeed, LossPoint
from scripts.ladder.plan import Ladder, Part, Row
from scripts.ladder.plots import (
    Limit,
    flops_of,
    mean_curve,
    milliseconds_of,
    render_inference_png,
    render_training_png,
)
from scripts.ladder.results import RowResult, collect, compare_words, render_markdown

LADDER = Ladder(
    recipe="recipe.yaml",
    tuning_seed=0,
    seeds=(1, 2),
    base_method="vanilla",
    continued=Part(iterations=4, learning_rates=(0.1, 0.2), rows={"vanilla": Row(), "ponderlm3": Row()}),
)


def finish(
    folder: Path, row: str, rate: float, seed: int, loss: float, by_steps: tuple[float, ...] = ()
) -> Path:
    points = [{"kind": "steps", "value": number, "loss": value} for number, value in enumerate(by_steps)]
    record = {
        "settings": {"seed": seed, "optimizer.lr": rate, "ponder.num_latent_thoughts": 2},
        "seconds": 2.0,
        "evaluation": {
            names.LM_LOSS_VALIDATION: loss,
            names.FLOPS_PER_TOKEN_INFER: 3e6,
            names.MEAN_STEPS: 1.5,
            names.EVAL_SWEEP: [*points, {"kind": "tau", "value": 0.5, "loss": 9.0}],
        },
    }
    target = folder / "continued" / row / f"lr-{rate:g}" / f"seed-{seed}"
    target.mkdir(parents=True)
    (target / "ladder.json").write_text(json.dumps(record))
    # 20 iterations of 1,000 tokens at 5 MFLOPs, then 10 at 8.
    steps = [
        {"event": TRAINING, "iteration": at, names.FLOPS_PER_TOKEN_TRAIN: flops}
        | {names.ITERATION_TIME: 0.5, names.TOKENS_PER_SECOND: 2000.0}
        for at, flops in ((20, 5e6), (30, 8e6))
    ]
    (target / METRICS_FILE).write_text("".join(json.dumps(step) + "\n" for step in steps))
    return target


def test_rows_are_compared_with_the_control_seed_by_seed(tmp_path: Path) -> None:
    # The tuning seed has runs at other learning rates; none of them is reported.
    finish(tmp_path, "vanilla", 0.1, 0, 1.0)
    for seed, control, loss in ((1, 3.0, 2.9), (2, 4.0, 3.7)):
        finish(tmp_path, "vanilla", 0.2, seed, control)
        finish(tmp_path, "ponderlm3", 0.1, seed, loss, (5.0 + seed, 4.0))

    control, row = collect(tmp_path, LADDER)

    assert (control.row, control.gains, control.learning_rate) == ("vanilla", [], 0.2)
    assert row.losses == [2.9, 3.7]
    assert row.gains == pytest.approx([-0.1, -0.3])
    assert row.losses_by_steps == [6.5, 4.0]
    assert (row.mean_steps, row.flops_per_token) == (1.5, 3e6)
    assert row.training_flops == pytest.approx(20 * 1000 * 5e6 + 10 * 1000 * 8e6)
    assert "-0.2000 ± 0.1414" in render_markdown([row])


def curve(loss: float, *, milliseconds: float | None = None) -> PruningCurve:
    speeds = () if milliseconds is None else (speed(milliseconds),)
    shared = {"mean_steps": 1.0, "speeds": speeds}
    return PruningCurve(
        name="run",
        method="ponderlm3",
        num_latent_thoughts=2,
        iteration=1,
        num_jacobi_iterations=1,
        num_global_batches=1,
        num_tokens=9,
        unigram_entropy=1.0,
        points=(
            LossPoint(step_limit=0, loss=loss + 1, flops_per_token=1.0, **shared),
            LossPoint(step_limit=2, loss=loss, flops_per_token=3.0, **shared),
            LossPoint(
                pruning_threshold=0.3 * loss, budget="50%", loss=loss + 0.5, flops_per_token=2.0, **shared
            ),
            LossPoint(pruning_threshold=0.1, loss=loss, flops_per_token=2.9, **shared),
        ),
        baseline=(LossPoint(signal="entropy", budget="50%", loss=loss + 0.7, flops_per_token=2.0, **shared),),
    )


def speed(milliseconds: float) -> DecodingSpeed:
    return DecodingSpeed(
        batch_size=1,
        milliseconds_per_token=milliseconds,
        tokens_per_second=1e3 / milliseconds,
        mean_steps=1.0,
        flops_per_token=2.0,
        gain_reached=None,
    )


def row_of(*curves: PruningCurve) -> RowResult:
    return RowResult(
        part="continued",
        row="ponderlm3",
        learning_rate=0.1,
        losses=[1.0, 2.0],
        gains=[],
        losses_by_steps=[],
        mean_steps=1.0,
        flops_per_token=1.0,
        training_flops=5.0,
        seconds=1.0,
        curves=curves,
    )


def test_points_of_one_setting_are_averaged_over_seeds() -> None:
    row = row_of(curve(1.0), curve(2.0))

    def losses(limit: Limit) -> list[tuple[float, float, float]]:
        return [(point.cost, point.loss, point.spread) for point in mean_curve(row, limit, flops_of)]

    spread = pytest.approx(0.5**0.5)
    assert losses(Limit.FIXED) == [(1.0, 2.5, spread), (3.0, 1.5, spread)]
    assert losses(Limit.ROUTER) == [(2.0, 2.0, spread)]
    assert losses(Limit.BASELINE) == [(2.0, pytest.approx(2.2), spread)]


def test_the_time_is_that_of_the_seeds_that_were_timed() -> None:
    row = row_of(curve(1.0, milliseconds=4.0), curve(2.0))

    (point,) = mean_curve(row, Limit.ROUTER, milliseconds_of)
    assert (point.cost, point.loss) == (4.0, 2.0)
    assert mean_curve(row_of(curve(1.0)), Limit.ROUTER, milliseconds_of) == []


def test_plots_are_images(tmp_path: Path) -> None:
    rows = [row_of(curve(1.0), curve(2.0)), row_of()]

    for content in (render_training_png(rows), render_inference_png(rows, flops_of, "FLOPs")):
        assert content.startswith(b"\x89PNG")


def test_every_seed_is_measured_at_the_same_limits(tmp_path: Path) -> None:
    run = finish(tmp_path, "ponderlm3", 0.1, 1, 2.0)

    words = compare_words(run, timing=False)

    assert words[:2] == ["compare", str(run)]
    assert [words[at + 1] for at, word in enumerate(words) if word == "--max-steps"] == ["0", "1", "2"]
    assert words.count("--budget") == 5
    assert "--no-timing" in words
