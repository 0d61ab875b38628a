"""Exact sums over the global batch, gathered with one collective per logging interval."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


class StatisticsAccumulator:
    """Sums of the statistics of many micro-batches on the device, which are read once per interval.

    All sums are in one flat float64 vector, so that adding takes two kernels, and reducing one all-reduce and
    one copy to the host, for any number of statistics. Float64, because the number of tokens in an interval
    of a large run exceeds 2**24.
    """

    def __init__(self, layout: Mapping[str, int], *, device: torch.device) -> None:
        """Allocate the sums; ``layout`` is the length of each statistic by name, in a fixed order."""
        self._layout = dict(layout)
        self._flat = torch.zeros(sum(self._layout.values()), dtype=torch.float64, device=device)

    def add(self, statistics: Mapping[str, Tensor], *, is_limited: bool = False) -> None:
        """Add the sums of one micro-batch, without synchronizing with the device.

        Args:
            statistics: one tensor [length] for each name of the layout.
            is_limited: of a forward with fewer steps than the layout has; what it lacks counts as 0.
        Raises:
            ValueError: a name or a length differs from the layout.
        """
        if is_limited:
            statistics = self._filled_up(statistics)
        self._check(statistics)
        self._flat += torch.cat([statistics[name].detach() for name in self._layout])

    def copy(self) -> Tensor:
        """Return a copy of the sums, for :meth:`restore`."""
        return self._flat.clone()

    def restore(self, sums: Tensor) -> None:
        """Discard what was added since `sums` were copied."""
        self._flat.copy_(sums)

    def reduce(self, *groups: dist.ProcessGroup) -> dict[str, list[float]]:
        """Return the sums over all ranks of the groups, and reset them to zero.

        Args:
            groups: the data-parallel group, and the pipeline group, in which only the last stage has added
                anything; none if this process has the complete batch.
        """
        for group in groups:
            if dist.get_world_size(group) > 1:
                dist.all_reduce(self._flat, group=group)
        values = self._flat.tolist()
        self._flat.zero_()
        sums, start = {}, 0
        for name, length in self._layout.items():
            sums[name] = values[start : start + length]
            start += length
        return sums

    def _filled_up(self, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        like = self._flat.new_zeros(0)
        filled = {name: statistics.get(name, like) for name in self._layout}
        missing = {name: max(0, self._layout[name] - len(value)) for name, value in filled.items()}
        return {**statistics} | {
            name: torch.nn.functional.pad(value, (0, missing[name])) for name, value in filled.items()
        }

    def _check(self, statistics: Mapping[str, Tensor]) -> None:
        if statistics.keys() != self._layout.keys():
            expected, found = sorted(self._layout), sorted(statistics)
            raise ValueError(
                f"statistics must be {expected}, but are {found}; adapt the model's statistics_layout"
            )
        for name, length in self._layout.items():
            if statistics[name].shape != (length,):
                shape = tuple(statistics[name].shape)
                raise ValueError(f"statistic `{name}` must have shape ({length},), but has {shape}")
