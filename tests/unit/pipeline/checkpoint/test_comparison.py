import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.checkpoint.comparison import TensorComparison, compare_checkpoints
from pipeline.checkpoint.offline import OfflineWriter, full_chunk


def _write(folder: Path, **tensors: Tensor) -> Path:
    folder.mkdir()
    with OfflineWriter(folder) as writer:
        for name, values in tensors.items():
            writer.write_chunk(name, values, chunk=full_chunk(values.size()), size=values.size())
    return folder


def _compare(tmp_path: Path, first: Tensor, second: Tensor) -> TensorComparison:
    folders = _write(tmp_path / "a", weight=first), _write(tmp_path / "b", weight=second)
    (compared,) = compare_checkpoints(*folders)
    return compared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_equal_tensors_are_equal(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.arange(6).reshape(2, 3).to(dtype)
    assert _compare(tmp_path, values, values.clone()).is_equal


def test_the_number_of_differences_and_the_largest_are_found(tmp_path: Path) -> None:
    found = _compare(tmp_path, torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.5, 3.0, 2.0]))
    assert (found.num_different, found.largest_difference) == (2, 2.0)
    assert not found.is_equal


def test_a_nan_equals_itself_and_differs_from_a_number(tmp_path: Path) -> None:
    with_nan = torch.tensor([1.0, math.nan])
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert _compare(tmp_path / "one", with_nan, with_nan.clone()).is_equal
    found = _compare(tmp_path / "two", with_nan, torch.ones(2))
    assert (found.num_different, found.largest_difference) == (1, math.inf)


def test_zeros_of_different_sign_differ_by_their_bits(tmp_path: Path) -> None:
    found = _compare(tmp_path, torch.tensor([0.0]), torch.tensor([-0.0]))
    assert (found.num_different, found.largest_difference) == (1, 0.0)


def test_scalars_and_empty_tensors_are_compared(tmp_path: Path) -> None:
    for number, values in enumerate((torch.tensor(2.0), torch.empty(0, 3))):
        (tmp_path / str(number)).mkdir()
        assert _compare(tmp_path / str(number), values, values.clone()).is_equal


@pytest.mark.parametrize(
    ("other", "problem"),
    [(torch.ones(3), r"shape [2] and [3]"), (torch.ones(2).double(), "type torch.float32 and torch.float64")],
)
def test_other_shapes_and_types_are_problems(tmp_path: Path, other: Tensor, problem: str) -> None:
    assert _compare(tmp_path, torch.ones(2), other).problem == problem


def test_a_tensor_in_only_one_checkpoint_is_a_problem_unless_the_pattern_excludes_it(tmp_path: Path) -> None:
    values = torch.ones(2)
    first = _write(tmp_path / "a", weight=values, bias=values)
    second = _write(tmp_path / "b", weight=values)
    assert [item.problem for item in compare_checkpoints(first, second)] == [f"only in {first}", ""]
    assert [item.is_equal for item in compare_checkpoints(first, second, pattern="w*")] == [True]
