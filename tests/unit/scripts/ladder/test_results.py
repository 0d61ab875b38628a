"""Mean and spread of a ladder's rows."""

import json
from pathlib import Path

import pytest

from pipeline.metrics import names
from pipeline.metrics.jsonl import METRICS_FILE, TRAINING, VALIDATION
from scripts.ladder.plan import Ladder, Part, Row
from scripts.ladder.results import collect, render_markdown

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
    before = {"event": VALIDATION, "iteration": 0, names.LM_LOSS_VALIDATION: loss + 1}
    (target / METRICS_FILE).write_text("".join(json.dumps(event) + "\n" for event in (before, *steps)))
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
    assert row.loss_before == pytest.approx(4.3)
    assert row.gains == pytest.approx([-0.1, -0.3])
    assert row.losses_by_steps == [6.5, 4.0]
    assert (row.mean_steps, row.flops_per_token) == (1.5, 3e6)
    assert row.training_flops == pytest.approx(20 * 1000 * 5e6 + 10 * 1000 * 8e6)
    assert "-0.2000 ± 0.1414" in render_markdown([row])
