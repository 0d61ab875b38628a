import json
import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.results import (
    EvaluationResult,
    LossQuartile,
    load_evaluation,
    load_sample,
    loss_quartiles,
    save_json,
)
from tests.unit.pipeline.report.sample_data import made_up_evaluation, made_up_sample


def test_evaluation_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "evaluation.json"
    save_json(made_up_evaluation(), path)
    assert load_evaluation(path) == made_up_evaluation()
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"]


def test_sample_survives_its_file(tmp_path: Path) -> None:
    save_json(made_up_sample(), tmp_path / "sample.json")
    assert load_sample(tmp_path / "sample.json") == made_up_sample()


@pytest.mark.parametrize("change", [{"colour": 1}, {"loss": "low"}, {"format": "megaponder.evaluation/2"}])
def test_a_file_of_another_form_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "evaluation.json"
    save_json(made_up_evaluation(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"evaluation\.json"):
        load_evaluation(path)


def test_quartiles_of_a_hand_made_case() -> None:
    nll = np.array([4.0, 1.0, 3.0, 2.0, 8.0, 5.0, 7.0, 6.0])
    steps = np.array([2, 0, 1, 1, 3, 2, 3, 3])
    assert loss_quartiles(nll, steps) == (
        LossQuartile(lowest_nll=1.0, highest_nll=2.0, mean_nll=1.5, mean_steps=0.5, num_tokens=2),
        LossQuartile(lowest_nll=3.0, highest_nll=4.0, mean_nll=3.5, mean_steps=1.5, num_tokens=2),
        LossQuartile(lowest_nll=5.0, highest_nll=6.0, mean_nll=5.5, mean_steps=2.5, num_tokens=2),
        LossQuartile(lowest_nll=7.0, highest_nll=8.0, mean_nll=7.5, mean_steps=3.0, num_tokens=2),
    )


def test_quartiles_need_four_tokens_and_equal_shapes() -> None:
    assert loss_quartiles(np.ones(3), np.ones(3, dtype=np.int64)) == ()
    with pytest.raises(ValueError, match=r"\(5,\).*\(4,\)"):
        loss_quartiles(np.ones(5), np.ones(4, dtype=np.int64))


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    evaluation: EvaluationResult = made_up_evaluation()
    assert evaluation.perplexity == pytest.approx(math.exp(evaluation.loss))
