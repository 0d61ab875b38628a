from typing import Any

import pytest

from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.validate import build_config
from tests.unit.pipeline.config.settings import changed_settings


def problems_of(**changes: Any) -> list[ConfigProblem]:
    with pytest.raises(ConfigError) as caught:
        build_config(changed_settings(**changes))
    return list(caught.value.problems)


# Changes that break one rule, the setting it is reported at, and a piece of the cure.
BROKEN = [
    ({"model__hidden_size": 66}, "model.hidden_size", "64 or 68"),
    ({"model__num_query_groups": 3}, "model.num_query_groups", "try 2"),
    ({"model__architecture": "gpt_neox", "model__num_query_groups": 2}, "model.num_query_groups", "llama"),
    ({"model__kv_channels": 15}, "model.rotary_percent", "even"),
    ({"model__rotary_percent": 0.01}, "model.rotary_percent", "even"),
    ({"training__seq_length": 4096}, "training.seq_length", "4096"),
    ({"model__vocab_size": 100, "model__padding_token_id": 100}, "model.padding_token_id", "99"),
    ({"ponder__method": "ponderlm"}, "ponder.method", "vanilla, ponderlm2 or ponderlm3"),
    ({"ponder__method": "loop"}, "ponder.method", "ponderlm3"),
    ({"ponder__method": "pause"}, "ponder.method", "ponderlm3"),
    ({"ponder__method": "adaponderlm"}, "ponder.method", "ponderlm3"),
    ({"ponder__random_jacobi_iterations": [3, 1]}, "ponder.random_jacobi_iterations", "[1, 3]"),
    (
        {"ponder__random_jacobi_iterations": [1, 3], "ponder__num_latent_thoughts": 0},
        "ponder.random_jacobi_iterations",
        "leave it out",
    ),
    ({"ponder__penalty_ramp": [9, 3]}, "ponder.penalty_ramp", "[3, 9]"),
    ({"ponder__interpolation_use_topk": True}, "ponder.interpolation_use_topk", "interpolation"),
    (
        {
            "ponder__interpolation": True,
            "ponder__interpolation_use_topk": True,
            "model__vocab_size": 50,
        },
        "ponder.interpolation_topk",
        "try 50",
    ),
    ({"parallel__tensor": 3}, "parallel.tensor", "try 2"),
    ({"parallel__pipeline": 2}, "parallel.pipeline", "parallel.data"),
    ({"parallel__sequence_parallel": True}, "parallel.sequence_parallel", "parallel.tensor to 2"),
    (
        {"parallel__sequence_parallel": True, "parallel__tensor": 2, "training__seq_length": 63},
        "training.seq_length",
        "62 or 64",
    ),
    ({"training__global_batch_size": 9}, "training.global_batch_size", "8 or 12"),
    ({"training__global_batch_size": 8, "parallel__data": 4}, "training.global_batch_size", "try 16"),
    (
        {"parallel__overlap_grad_reduce": True, "parallel__recompute": "full"},
        "parallel.overlap_grad_reduce",
        "false",
    ),
    (
        {"parallel__overlap_grad_reduce": True, "ponder__random_jacobi_iterations": [1, 2]},
        "parallel.overlap_grad_reduce",
        "false",
    ),
    ({"optimizer__min_lr": 1e-2}, "optimizer.min_lr", "0.0001"),
    ({"optimizer__lr_warmup_iters": 100}, "optimizer.lr_warmup_iters", "try 10"),
    ({"optimizer__lr_decay_iters": 50, "optimizer__lr_warmup_iters": 50}, "optimizer.lr_warmup_iters", "5"),
    ({"optimizer__lr_decay_style": "wsd"}, "optimizer.wsd_decay_iters", "try 20"),
    (
        {"optimizer__lr_decay_style": "wsd", "optimizer__wsd_decay_iters": 101},
        "optimizer.wsd_decay_iters",
        "try 20",
    ),
    ({"data__heldout_split": "train"}, "data.heldout_split", "another split"),
]


@pytest.mark.parametrize(("changes", "path", "cure"), BROKEN)
def test_a_broken_rule_is_reported_at_its_setting_with_a_cure(
    changes: dict[str, Any], path: str, cure: str
) -> None:
    problems = problems_of(**changes)

    assert [problem.path for problem in problems] == [path]
    assert cure in problems[0].cure


def test_vanilla_takes_neither_thoughts_nor_sweeps() -> None:
    problems = problems_of(
        ponder={
            "method": "vanilla",
            "num_latent_thoughts": 2,
            "num_jacobi_iterations": 1,
            "interpolation": True,
        }
    )

    assert [problem.path for problem in problems] == [
        "ponder.num_latent_thoughts",
        "ponder.num_jacobi_iterations",
        "ponder.interpolation",
    ]


def test_a_router_needs_a_quarter_of_the_hidden_size() -> None:
    problems = problems_of(
        model={
            "architecture": "llama",
            "num_layers": 1,
            "hidden_size": 2,
            "ffn_hidden_size": 2,
            "num_attention_heads": 1,
        }
    )

    assert [problem.path for problem in problems] == ["model.hidden_size"]


ALLOWED = [
    {"model__hidden_size": 66, "model__kv_channels": 8},
    {"model__num_query_groups": 2, "parallel__tensor": 2},
    {"parallel__sequence_parallel": True, "parallel__tensor": 2},
    {"parallel__overlap_grad_reduce": True, "parallel__data": 2},
    {"ponder__random_jacobi_iterations": [2, 2]},
    {"optimizer__lr_decay_style": "wsd", "optimizer__wsd_decay_iters": 20},
    {"optimizer__lr_decay_style": "constant", "optimizer__clip_grad": 0},
    {"ponder__method": "ponderlm2", "ponder__num_latent_thoughts": 0},
    {"training__precision": "bf16"},
]


@pytest.mark.parametrize("changes", ALLOWED)
def test_what_fits_together_is_accepted(changes: dict[str, Any]) -> None:
    build_config(changed_settings(**changes))
