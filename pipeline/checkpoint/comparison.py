"""Compare the tensors of two checkpoints."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from pipeline.checkpoint.offline import OfflineReader


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorComparison:
    """One tensor in two checkpoints.

    Attributes:
        name: of the tensor.
        problem: why values cannot be compared: it is missing in one, or its shapes or types differ; otherwise
            empty.
        num_different: values whose bits differ.
        largest_difference: absolute, in float64.
    """

    name: str
    problem: str = ""
    num_different: int = 0
    largest_difference: float = 0.0

    @property
    def is_equal(self) -> bool:
        """Whether both are bit-equal."""
        return not self.problem and self.num_different == 0


def compare_checkpoints(first: Path, second: Path, *, pattern: str = "*") -> Iterator[TensorComparison]:
    """Compare tensor by tensor, one chunk of the first at a time.

    Args:
        first, second: ``iter_`` folders, saved on any layouts.
        pattern: shell pattern of the names to compare.
    Raises:
        CheckpointError: one cannot be read.
    """
    left, right = OfflineReader(first), OfflineReader(second)
    for name in sorted({*left.tensors, *right.tensors}):
        if fnmatchcase(name, pattern):
            problem = _problem(name, left, right)
            yield TensorComparison(name=name, problem=problem) if problem else _compare(name, left, right)


def _problem(name: str, left: OfflineReader, right: OfflineReader) -> str:
    for missing, present in ((left, right), (right, left)):
        if name not in missing.tensors:
            return f"only in {present.folder}"
    one, other = left.tensors[name], right.tensors[name]
    if one.size != other.size:
        return f"shape {list(one.size)} and {list(other.size)}"
    if one.properties.dtype != other.properties.dtype:
        return f"type {one.properties.dtype} and {other.properties.dtype}"
    return ""


def _compare(name: str, left: OfflineReader, right: OfflineReader) -> TensorComparison:
    num_different, largest = 0, 0.0
    for chunk in left.tensors[name].chunks:
        one, other = left.read(name, chunk), right.read(name, chunk)
        # By bits: a NaN equals itself, and -0 is not 0.
        differs = (one.flatten().view(torch.uint8) != other.flatten().view(torch.uint8)).view(
            one.numel(), one.element_size()
        )
        count = int(differs.any(dim=1).sum())
        if count:
            num_different += count
            gap = (one.double() - other.double()).abs().max().item()
            largest = max(largest, gap if gap == gap else float("inf"))
    return TensorComparison(name=name, num_different=num_different, largest_difference=largest)
