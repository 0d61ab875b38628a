from typing import Any

import pytest

from pipeline.config.errors import ConfigError
from pipeline.config.validate import build_config, setting_paths
from tests.unit.pipeline.config.settings import changed_settings


def message_of(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_config(changed_settings(**changes))
    return str(caught.value)


def test_types_ranges_unknown_names_and_rules_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(
            changed_settings(
                model__num_layers="two",
                optimizer__lr=-1.0,
                training__train_iter=5,
                parallel__tensor=3,
                training__global_batch_size=9,
            )
        )

    assert {problem.path for problem in caught.value.problems} == {
        "model.num_layers",
        "optimizer.lr",
        "training.train_iter",
        "parallel.tensor",
        "training.global_batch_size",
    }


def test_an_invalid_setting_is_not_reported_again_by_the_rules_on_it() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(changed_settings(model__num_attention_heads=-4, parallel__tensor=3))

    assert [problem.path for problem in caught.value.problems] == ["model.num_attention_heads"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model__num_layer": 3}, "model.num_layer: must be a known setting, but is unknown; did you mean "
         "model.num_layers?"),
        ({"train_iters": 3}, "did you mean training.train_iters?"),
        ({"model__lr": 1e-3}, "did you mean optimizer.lr?"),
        ({"tensor_model_parallel_size": 2}, "did you mean parallel.tensor?"),
        ({"trainning": {}}, "did you mean training"),
        ({"ponder__method": "ponderlm33"}, "did you mean ponderlm3?"),
        ({"optimizer__lr_decay_style": "cosinus"}, "must be one of cosine, wsd, constant or linear"),
        ({"model__num_layers": True}, "model.num_layers: must be an integer, but is true"),
        ({"model__num_layers": 2.0}, "must be an integer, but is 2.0; write 2"),
        ({"model__num_layers": "2"}, "must be an integer, but is '2'; write it without quotes"),
        ({"model__num_layers": 0}, "must be at least 1, but is 0"),
        ({"optimizer__lr": float("nan")}, "optimizer.lr: must be a finite number"),
        ({"optimizer__adam_beta1": 1.0}, "must be below 1, but is 1.0"),
        ({"parallel__sequence_parallel": 1}, "must be true or false, but is 1"),
        ({"training": 3}, "training: must be a group of settings, but is 3"),
        ({"ponder__penalty_ramp": [1, 2, 3]}, "must have at most 2 entries, but is [1, 2, 3]"),
        ({"ponder__penalty_ramp": 3}, "ponder.penalty_ramp: must be a list, but is 3"),
        ({"ponder__jacobi_schedule": []}, "must have at least 1 entry, but is []"),
        ({"ponder__jacobi_schedule": [[0, -1]]}, "ponder.jacobi_schedule.0.1: must be at least 0, but is -1"),
        ({"ponder__mixture": "top-k"}, "must be one of hidden, softmax or top_k, but is 'top-k'; did you "
         "mean top_k?"),
        ({"ponder__interpolation": True}, "did you mean ponder.mixture?"),
        ({"ponder__interpolation_topk": 10}, "did you mean ponder.mixture_top_k?"),
        ({"pondering_steps": 3}, "did you mean ponder.num_latent_thoughts?"),
        ({"ponder__mutiply_pondering_steps": True}, "did you mean ponder.multiply_embedding?"),
        ({"ponder__recurrent_steps": 4}, "did you mean ponder.num_latent_thoughts?"),
        ({"name": "a/b"}, "as it names a folder, but is 'a/b'"),
        ({"optimizer": {}}, "optimizer.lr: must be given, but is missing"),
    ],
)  # fmt: skip
def test_the_message_says_what_must_hold_what_was_found_and_how_to_cure_it(
    changes: dict[str, Any], expected: str
) -> None:
    assert expected in message_of(**changes)


def test_the_headline_counts_the_problems() -> None:
    assert message_of(seed=-1).startswith("1 problem in the configuration:")
    assert message_of(seed=-1, optimizer__lr=0.0).startswith("2 problems in the configuration:")


def test_setting_paths_name_every_leaf_once() -> None:
    paths = setting_paths()

    assert len(set(paths)) == len(paths)
    assert {"name", "seed", "model.num_layers", "metrics.collapse_patience"} <= set(paths)
    assert "model" not in paths
