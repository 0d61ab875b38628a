"""What a run does with the self-test of its attention kernel."""

from typing import Any

import pytest
import torch

from megatron_ext.model.kernels import KernelCheck, check_kernel
from megatron_ext.parallel.groups import ParallelGroups
from pipeline.config.errors import ConfigError
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.run.attention import attention_cases, check_attention, problem_of
from tests.support.one_rank import groups
from tests.unit.pipeline.config.settings import changed_settings

__all__ = ["groups"]

VOCAB_SIZE = 40


def run_with(**changes: Any) -> RunConfig:
    return build_config(changed_settings(training__precision="bf16", **changes))


@pytest.mark.parametrize(
    ("changes", "weighs", "heads"),
    [
        ({}, [False, True], 4),
        ({"parallel__tensor": 2}, [False, True], 2),
        ({"ponder": {"method": "vanilla"}}, [False], 4),
    ],
)
def test_all_sizes_of_the_run_are_checked(changes: dict[str, Any], weighs: list[bool], heads: int) -> None:
    cases = attention_cases(run_with(**changes), VOCAB_SIZE)

    assert [case.weighs_keys for case in cases] == weighs
    assert {case.num_heads for case in cases} == {heads}
    assert {case.num_rows for case in cases} == {64}
    assert all(check_kernel(case, torch.device("cpu")).is_right for case in cases)


@pytest.mark.parametrize(
    ("wanted", "kernel", "ratio", "is_problem"),
    [
        ("auto", "flash", 1.0, False),
        ("auto", "efficient", 1.0, False),
        ("flash", "flash", 1.0, False),
        ("cudnn", "cudnn", 1.0, False),
        ("flash", "efficient", 1.0, True),
        ("cudnn", "flash", 1.0, True),
        ("cudnn", "cudnn", 100.0, True),
        ("auto", "flash", float("inf"), True),
    ],
)
def test_a_kernel_is_refused_that_is_wrong_or_not_the_one_asked_for(
    wanted: str, kernel: str, ratio: float, is_problem: bool
) -> None:
    config = run_with(training__attention=wanted)
    (case, _) = attention_cases(config, VOCAB_SIZE)
    found = problem_of(config, case, KernelCheck(kernel=kernel, errors={"output": ratio}))

    assert (found is not None) == is_problem
    assert found is None or (found.path == "training.attention" and found.cure)


def test_cudnn_is_refused_on_a_cpu(groups: ParallelGroups) -> None:
    check_attention(run_with(training__attention="flash"), VOCAB_SIZE, groups)
    with pytest.raises(ConfigError) as caught:
        check_attention(run_with(training__attention="cudnn"), VOCAB_SIZE, groups)

    assert [problem.path for problem in caught.value.problems] == ["training.attention"]
