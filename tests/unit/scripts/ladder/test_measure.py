"""The commands that measure a ladder's runs."""

import json
from pathlib import Path

from pipeline.evaluation.compare.curve import CURVE_FILE, PruningCurve, save_curve
from pipeline.evaluation.results import LIMITED_EVALUATION_FILE, EvaluationResult, save_json
from pipeline.metrics.records import LossPoint
from scripts.ladder.measure import compare_words, steps_words


def folder_of_run(tmp_path: Path, **settings: object) -> Path:
    (tmp_path / "ladder.json").write_text(json.dumps({"settings": settings}))
    return tmp_path


def values(words: list[str], option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def test_every_seed_is_measured_within_the_same_budgets(tmp_path: Path) -> None:
    run = folder_of_run(tmp_path, **{"ponder.num_latent_thoughts": 2, "ponder.pruning_threshold": 0.2})

    words = compare_words(run)

    assert words is not None
    assert words[:2] == ["compare", str(run)]
    assert values(words, "--budget") == ["70%", "80%", "90%"]
    assert values(words, "--threshold") == ["0.2"]
    assert "--no-timing" in words


def test_a_model_without_steps_has_no_budgets(tmp_path: Path) -> None:
    assert compare_words(folder_of_run(tmp_path)) is None


def test_the_steps_of_easy_and_hard_tokens_are_measured_once_at_one_budget(tmp_path: Path) -> None:
    assert steps_words(tmp_path) is None
    save_curve(curve(budget="70%", threshold=0.3), tmp_path / CURVE_FILE)
    assert steps_words(tmp_path) is None
    save_curve(curve(budget="80%", threshold=0.2), tmp_path / CURVE_FILE)
    assert steps_words(tmp_path) == ["eval", str(tmp_path), "--threshold", "0.2", "--no-timing"]

    save_json(evaluation(threshold=0.3), tmp_path / LIMITED_EVALUATION_FILE)
    assert steps_words(tmp_path) is not None
    save_json(evaluation(threshold=0.2), tmp_path / LIMITED_EVALUATION_FILE)
    assert steps_words(tmp_path) is None


def curve(*, budget: str, threshold: float) -> PruningCurve:
    point = LossPoint(
        pruning_threshold=threshold, budget=budget, loss=1.0, mean_steps=1.0, flops_per_token=2.0
    )
    return PruningCurve(
        name="run",
        method="ponderlm3",
        num_latent_thoughts=2,
        iteration=1,
        num_jacobi_iterations=1,
        num_global_batches=1,
        num_tokens=9,
        unigram_entropy=1.0,
        points=(point,),
    )


def evaluation(*, threshold: float) -> EvaluationResult:
    return EvaluationResult(
        checkpoint="here",
        iteration=1,
        split="heldout",
        method="ponderlm3",
        num_latent_thoughts=2,
        num_jacobi_iterations=1,
        pruning_threshold=threshold,
        num_tokens=9,
        loss=1.0,
        unigram_entropy=1.0,
        steps_count=(3, 3, 3),
        nll_by_steps=(1.0, 1.0, 1.0),
        loss_quartiles=(),
        residuals=(),
        tokens_per_second=1.0,
    )
