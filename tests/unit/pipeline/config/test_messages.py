from typing import Any

import pytest

from pipeline.config.messages import largest_common_divisor_up_to, nearest_multiples, nearest_name
from tests.unit.pipeline.config.settings import problems_of

# Changes to valid settings, the setting that is reported, and its value as written in YAML.
MISTAKES = [
    ({"optimizer__lr_decay_style": "cosinus"}, "optimizer.lr_decay_style", "'cosinus'"),
    ({"model__num_layers": True}, "model.num_layers", "true"),
    ({"model__num_layers": "2"}, "model.num_layers", "'2'"),
    ({"optimizer__lr": float("nan")}, "optimizer.lr", "nan"),
    ({"parallel__sequence_parallel": 1}, "parallel.sequence_parallel", "1"),
    ({"training": 3}, "training", "3"),
    ({"ponder__penalty_ramp": 3}, "ponder.penalty_ramp", "3"),
    ({"name": "a/b"}, "name", "'a/b'"),
    ({"optimizer": {}}, "optimizer.lr", "missing"),
]
# As above, with a name or number that the rule must contain.
LIMITS = [
    ({"model__num_layers": 0}, "model.num_layers", "0", "1"),
    ({"optimizer__adam_beta1": 1.0}, "optimizer.adam_beta1", "1.0", "1"),
    ({"ponder__penalty_ramp": [1, 2, 3]}, "ponder.penalty_ramp", "[1, 2, 3]", "2"),
    ({"ponder__jacobi_schedule": []}, "ponder.jacobi_schedule", "[]", "1"),
    ({"ponder__jacobi_schedule": [[0, -1]]}, "ponder.jacobi_schedule.0.1", "-1", "0"),
    ({"ponder__mixture": "none"}, "ponder.mixture", "'none'", "hidden, softmax or top_k"),
    ({"ponder__gradient_passes": "some"}, "ponder.gradient_passes", "'some'", "all"),
    ({"ponder__gradient_passes": 0}, "ponder.gradient_passes", "0", "1"),
    ({"ponder__gradient_passes": True}, "ponder.gradient_passes", "true", "1"),
    ({"ponder__sweep_tolerance": 0.0}, "ponder.sweep_tolerance", "0.0", "0"),
]
# Changes, the setting that is reported, and the name or value that the cure must contain.
SUGGESTIONS = [
    ({"model__num_layer": 3}, "model.num_layer", "model.num_layers"),
    ({"train_iters": 3}, "train_iters", "training.train_iters"),
    ({"model__lr": 1e-3}, "model.lr", "optimizer.lr"),
    ({"tensor_model_parallel_size": 2}, "tensor_model_parallel_size", "parallel.tensor"),
    ({"trainning": {}}, "trainning", "training"),
    ({"ponder__method": "ponderlm33"}, "ponder.method", "ponderlm3"),
    ({"ponder__mixture": "top-k"}, "ponder.mixture", "top_k"),
    ({"model__num_layers": 2.0}, "model.num_layers", "2"),
    ({"ponder__interpolation": True}, "ponder.interpolation", "ponder.mixture"),
    ({"ponder__interpolation_topk": 10}, "ponder.interpolation_topk", "ponder.mixture_top_k"),
    ({"pondering_steps": 3}, "pondering_steps", "ponder.num_latent_thoughts"),
    (
        {"ponder__mutiply_pondering_steps": True},
        "ponder.mutiply_pondering_steps",
        "ponder.multiply_embedding",
    ),
    ({"ponder__recurrent_steps": 4}, "ponder.recurrent_steps", "ponder.num_latent_thoughts"),
]


@pytest.mark.parametrize(("changes", "path", "value"), MISTAKES)
def test_a_mistake_is_reported_with_its_setting_and_value(
    changes: dict[str, Any], path: str, value: str
) -> None:
    (problem,) = problems_of(**changes)

    assert (problem.path, problem.value) == (path, value)


@pytest.mark.parametrize(("changes", "path", "value", "limit"), LIMITS)
def test_a_value_out_of_range_is_reported_with_the_range(
    changes: dict[str, Any], path: str, value: str, limit: str
) -> None:
    (problem,) = problems_of(**changes)

    assert (problem.path, problem.value) == (path, value)
    assert problem.rule.split(limit)[1:]


@pytest.mark.parametrize(("changes", "path", "suggestion"), SUGGESTIONS)
def test_the_cure_suggests_what_was_meant(changes: dict[str, Any], path: str, suggestion: str) -> None:
    (problem,) = problems_of(**changes)

    assert problem.path == path
    assert suggestion in problem.cure.rstrip("?").split()


def test_a_number_in_quotes_has_a_cure_and_a_word_has_none() -> None:
    assert problems_of(model__num_layers="2")[0].cure
    assert not problems_of(model__num_layers="two")[0].cure


def test_the_nearest_name_is_found_despite_case_and_hyphens() -> None:
    assert nearest_name("Train-Iter", ["train_iters", "lr"]) == "train_iters"
    assert nearest_name("zzz", ["train_iters", "lr"]) is None


@pytest.mark.parametrize(
    ("value", "divisor", "multiples"), [(100, 32, "96 or 128"), (5, 8, "8"), (8, 4, "8 or 12")]
)
def test_the_nearest_multiples_are_positive(value: int, divisor: int, multiples: str) -> None:
    assert nearest_multiples(value, divisor) == multiples


@pytest.mark.parametrize(
    ("limit", "numbers", "largest"), [(8, [12, 20], 4), (3, [12, 20], 2), (5, [7, 3], 1)]
)
def test_the_largest_common_divisor_stays_below_its_limit(
    limit: int, numbers: list[int], largest: int
) -> None:
    assert largest_common_divisor_up_to(limit, numbers) == largest
