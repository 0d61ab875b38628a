from typing import Any

import pytest

from pipeline.config.load import build_config
from pipeline.config.rules_parallel import even_stages
from tests.unit.pipeline.config.settings import changed_settings, problems_of

VANILLA = {"ponder": {"method": "vanilla"}}
OVERLAP = {"parallel__overlap_grad_reduce": True}
IN_STAGES = {"parallel__pipeline": 2}

# Changes that break one rule, the setting it is reported at, and the setting or value that the cure gives.
BROKEN = [
    ({"parallel__tensor": 3}, "parallel.tensor", "try 2"),
    ({"parallel__pipeline": 3, "training__global_batch_size": 12}, "parallel.pipeline", "try 2"),
    ({"parallel__layers_per_stage": [1, 1]}, "parallel.layers_per_stage", "try [2]"),
    ({**IN_STAGES, "parallel__layers_per_stage": [2]}, "parallel.layers_per_stage", "try [1, 1]"),
    (
        {**IN_STAGES, "model__num_layers": 5, "parallel__layers_per_stage": [2, 2]},
        "parallel.layers_per_stage",
        "try [3, 2]",
    ),
    ({"parallel__sequence_parallel": True}, "parallel.sequence_parallel", "parallel.tensor to 2"),
    (
        {"parallel__sequence_parallel": True, "parallel__tensor": 2, "training__seq_length": 63},
        "training.seq_length",
        "62 or 64",
    ),
    ({"parallel__context": 2, "training__seq_length": 66}, "training.seq_length", "64 or 68"),
    (
        {
            "parallel__sequence_parallel": True,
            "parallel__tensor": 2,
            "parallel__context": 3,
            "training__seq_length": 63,
        },
        "training.seq_length",
        "60 or 66",
    ),
    ({"training__global_batch_size": 9}, "training.global_batch_size", "8 or 12"),
    ({"training__global_batch_size": 8, "parallel__data": 4}, "training.global_batch_size", "try 16"),
    (
        {**IN_STAGES, "training__global_batch_size": 20},
        "training.global_batch_size",
        "try 16 or 24",
    ),
    (
        {**IN_STAGES, "parallel__data": 2, "training__global_batch_size": 24},
        "training.global_batch_size",
        "try 16 or 32",
    ),
    ({**OVERLAP, "parallel__recompute": "per_pass"}, "parallel.overlap_grad_reduce", "false"),
    ({"ponder": {"method": "loop"}, **OVERLAP, **IN_STAGES}, "parallel.overlap_grad_reduce", "false"),
    ({**OVERLAP, "ponder__freeze_backbone_tokens": 9}, "parallel.overlap_grad_reduce", "false"),
]


@pytest.mark.parametrize(("changes", "path", "cure"), BROKEN)
def test_a_broken_rule_is_reported_at_its_setting_with_a_cure(
    changes: dict[str, Any], path: str, cure: str
) -> None:
    problems = problems_of(**changes)

    assert [problem.path for problem in problems] == [path]
    assert problems[0].cure
    assert cure in problems[0].cure


def test_stages_without_layers_are_refused_by_the_type_of_the_setting() -> None:
    (problem,) = problems_of(**IN_STAGES, parallel__layers_per_stage=[2, 0])

    assert (problem.path, problem.value) == ("parallel.layers_per_stage.1", "0")


def test_the_batch_says_what_it_must_be_a_multiple_of() -> None:
    (problem,) = problems_of(**IN_STAGES, training__global_batch_size=12)

    assert "training.micro_batch_size x parallel.data x parallel.pipeline (4 x 1 x 2 = 8)" in problem.rule


def test_the_reasons_against_overlap_come_together() -> None:
    (problem,) = problems_of(**OVERLAP, **IN_STAGES, parallel__recompute="full")

    assert problem.value == ("true with parallel.recompute full and parallel.pipeline 2")


ALLOWED = [
    {"model__num_query_groups": 2, "parallel__tensor": 2},
    {"parallel__sequence_parallel": True, "parallel__tensor": 2},
    IN_STAGES,
    {**IN_STAGES, "parallel__layers_per_stage": [1, 1]},
    {**IN_STAGES, "model__num_layers": 5, "parallel__layers_per_stage": [1, 4]},
    {"parallel__layers_per_stage": [2]},
    {**IN_STAGES, "parallel__recompute": "per_pass"},
    {**VANILLA, **OVERLAP, "parallel__data": 2},
    {"ponder": {"method": "pause"}, **OVERLAP},
    {"ponder": {"method": "loop", "num_latent_thoughts": 0}, **OVERLAP, **IN_STAGES},
    {**VANILLA, **OVERLAP, **IN_STAGES, "parallel__recompute": "full"},
    {**OVERLAP, "ponder__random_jacobi_iterations": [1, 3]},
    # The passes stay in one graph.
    {**OVERLAP, "parallel__recompute": "selective"},
]


@pytest.mark.parametrize("changes", ALLOWED)
def test_consistent_settings_are_accepted(changes: dict[str, Any]) -> None:
    build_config(changed_settings(**changes))


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "stages"),
    [(6, 1, (6,)), (6, 2, (3, 3)), (3, 2, (2, 1)), (8, 3, (3, 3, 2)), (4, 4, (1, 1, 1, 1))],
)
def test_the_first_stages_hold_the_remainder(
    num_layers: int, num_stages: int, stages: tuple[int, ...]
) -> None:
    assert even_stages(num_layers, num_stages) == stages
