"""Comparison with recorded vectors can fail, and says in what."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.golden.case import GoldenCase, read_cases
from tests.support.golden.compare import CaseResult, Status, compare, zero_padding

LOGITS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
RECORDED = {
    "inputs/input_ids": torch.zeros(2, 3, dtype=torch.int64),
    "outputs/logits": LOGITS,
    "outputs/steps": torch.tensor([[0, 1, 2], [2, 1, 0]]),
    "outputs/position_ids": torch.zeros(2, 3, dtype=torch.int64),
    "outputs_f64/logits": LOGITS.double(),
    "grads/lm_head.weight": torch.ones(4, 2),
}
TOLERANCES = {"outputs/logits": 1e-4, "grads/*": 1e-3}


def case_of(folder: Path, **more: Tensor) -> GoldenCase:
    """Write a case and read it back."""
    tensors = RECORDED | {f"inputs/{name}": value for name, value in more.items()}
    save_file(tensors, folder / "case.safetensors")
    facts = {"name": "case", "kind": "forward", "method": "ponderlm3", "arch": "llama", "config": {}}
    tolerances = {"tolerance_float32_atol": TOLERANCES, "tolerance_float64_atol": 1e-9}
    (folder / "case.json").write_text(json.dumps(facts | {"flags": {}} | tolerances))
    (case,) = read_cases(folder)
    return case


def computed(**changes: Tensor) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in RECORDED.items() if "f64" not in name} | {
        name.replace("__", "/"): value for name, value in changes.items()
    }


def worst(result: CaseResult) -> dict[str, float]:
    return {name: round(ratio, 2) for name, ratio in result.worst.items() if ratio > 0}


def test_recorded_values_pass(tmp_path: Path) -> None:
    result = compare(case_of(tmp_path), computed(), double=False)

    assert result.status is Status.PASSED
    assert result.worst == {"logits": 0.0, "halting": 0.0, "gradients": 0.0}


@pytest.mark.parametrize(("error", "status"), [(0.9e-4, Status.PASSED), (1.1e-4, Status.FAILED)])
def test_errors_are_counted_in_tolerances(tmp_path: Path, error: float, status: Status) -> None:
    changed = LOGITS.clone()
    changed[1, 2, 3] += error

    result = compare(case_of(tmp_path), computed(outputs__logits=changed), double=False)

    assert result.status is status
    assert worst(result) == {"logits": pytest.approx(error / 1e-4, abs=0.02)}


def test_one_wrong_step_fails(tmp_path: Path) -> None:
    steps = RECORDED["outputs/steps"].clone()
    steps[0, 0] = 1

    result = compare(case_of(tmp_path), computed(outputs__steps=steps), double=False)

    assert (result.status, worst(result)) == (Status.FAILED, {"halting": 2.0})


def test_nan_fails(tmp_path: Path) -> None:
    broken = LOGITS.clone()
    broken[0, 0, 0] = float("nan")

    result = compare(case_of(tmp_path), computed(outputs__logits=broken), double=False)

    assert result.status is Status.FAILED


@pytest.mark.parametrize("wrong", [LOGITS[:, :2], LOGITS.transpose(0, 1)])
def test_a_different_shape_fails(tmp_path: Path, wrong: Tensor) -> None:
    result = compare(case_of(tmp_path), computed(outputs__logits=wrong), double=False)

    assert result.status is Status.FAILED


def test_missing_values_fail_by_name(tmp_path: Path) -> None:
    values = computed()
    del values["grads/lm_head.weight"]

    result = compare(case_of(tmp_path), values, double=False)

    assert result.status is Status.FAILED
    assert result.reason == "not computed: grads/lm_head.weight"


def test_float64_records_have_their_own_tolerance(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    exact = LOGITS.double()

    assert compare(case, computed(outputs__logits=exact + 1e-10), double=True).status is Status.PASSED
    assert compare(case, computed(outputs__logits=exact + 1e-8), double=True).status is Status.FAILED


def test_a_tensor_without_tolerance_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="outputs/loss"):
        case_of(tmp_path).tolerance("outputs/loss", double=False)


def test_padding_is_not_compared(tmp_path: Path) -> None:
    case = case_of(tmp_path, attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
    padded, real = LOGITS.clone(), LOGITS.clone()
    padded[1, 2] = 100.0
    real[1, 1] = 100.0

    # The values of a forward come cleared.
    keep = torch.tensor([[True, True, True], [True, True, False]])
    for wrong, status in ((padded, Status.PASSED), (real, Status.FAILED)):
        cleared = {
            name: zero_padding(name, value, keep) for name, value in computed(outputs__logits=wrong).items()
        }
        assert compare(case, cleared, double=False).status is status


def test_padding_is_cleared_in_every_layout() -> None:
    real = torch.tensor([[True, False], [True, True]])

    assert zero_padding("outputs/thoughts/x", torch.ones(3, 2, 2, 1), real).sum(dim=0).flatten().tolist() == [
        3,
        0,
        3,
        3,
    ]
    assert zero_padding("outputs/masks", torch.ones(3, 2, 2), real).sum(dim=0).tolist() == [[3, 0], [3, 3]]
    # Two slots per token.
    slots = zero_padding("outputs/pass_inputs/x", torch.ones(2, 4, 1), real)
    assert slots.flatten(1).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    for name, value in (("outputs/loss", torch.ones(())), ("grads/w", torch.ones(2, 2))):
        assert torch.equal(zero_padding(name, value, real), value)
