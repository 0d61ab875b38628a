"""The order of samples of several sources: a pure function of seed and position.

Weights are rounded to shares of 2**20 units. A cycle of 2**20 samples uses every unit once, in 256 blocks of
4,096 samples. A block has every 256th unit, so that its blend is nearly that of the cycle, and an order of
its own. How many samples of a source precede a position follows from the block's number: the position is the
only state.
"""

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.order import SampleOrder, permutation_keys, permute

_BLOCK_SAMPLES = 4096
_BLOCKS_PER_CYCLE = 256
_UNITS = _BLOCK_SAMPLES * _BLOCKS_PER_CYCLE


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendedSource:
    """One source of a blend.

    Attributes:
        name: for curves.
        num_samples: of one epoch.
        weight: share of the samples, relative to the other sources.
        max_epochs: after so many passes over the source, the others continue without it; None sets no limit.
    """

    name: str
    num_samples: int
    weight: float
    max_epochs: float | None = None

    @property
    def max_samples(self) -> int | None:
        """Samples that may be taken from it, at least one; None sets no limit."""
        return None if self.max_epochs is None else max(1, int(self.max_epochs * self.num_samples))


class BlendOrder:
    """The order of blended samples, which are numbered through all sources, one source after the other."""

    def __init__(self, sources: Sequence[BlendedSource], *, seed: int, shuffled: bool) -> None:
        """Compute a blend.

        Args:
            sources: at least one; the samples of each are in the order of a `SampleOrder` of its own.
            seed: of the run.
            shuffled: shuffle each source in every epoch.
        """
        self.sources = tuple(sources)
        lengths = [source.num_samples for source in sources]
        self._first_sample = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        # Different seeds, because sources of the same length may hold the same documents in two languages.
        # The first source has the seed of the run: alone, its order is that without a blend.
        self._orders = [
            SampleOrder(num_samples=length, seed=seed + (number << 64), shuffled=shuffled)
            for number, length in enumerate(lengths)
        ]
        self._phases = _phases(self.sources, seed)

    @property
    def num_samples(self) -> int:
        """Samples of all sources together."""
        return int(self._first_sample[-1])

    @property
    def capacity(self) -> int | None:
        """Samples until every source has reached its ``max_epochs``; None if one has no limit."""
        return self._phases[-1].stop

    def indices(self, consumed: int, count: int) -> NDArray[np.int64]:
        """Return the next ``count`` samples after ``consumed`` others.

        Raises:
            ValueError: the blend ends before.
        """
        if consumed < 0:
            raise ValueError(f"consumed samples must not be negative, but are {consumed}")
        if self.capacity is not None and consumed + count > self.capacity:
            raise ValueError(f"the blend has {self.capacity} samples, but {consumed + count} are requested")
        parts: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        while count > 0:
            phase = self._phase(consumed)
            in_block = _BLOCK_SAMPLES - (consumed - phase.start) % _BLOCK_SAMPLES
            taken = min(count, in_block, count if phase.stop is None else phase.stop - consumed)
            parts.append(self._indices_in_block(phase, consumed, taken))
            consumed, count = consumed + taken, count - taken
        return np.concatenate(parts)

    def samples_by_source(self, consumed: int) -> dict[str, int]:
        """Return how many of the first ``consumed`` samples are from each source."""
        counts = self._phase(consumed).counts(consumed)
        return {source.name: int(count) for source, count in zip(self.sources, counts, strict=True)}

    def _indices_in_block(self, phase: "_Phase", consumed: int, count: int) -> NDArray[np.int64]:
        places = phase.sources(consumed, count)
        before = phase.counts(consumed)
        indices = np.empty(count, dtype=np.int64)
        for number, order in enumerate(self._orders):
            is_here = places == number
            if is_here.any():
                own = order.indices(int(before[number]), int(is_here.sum()))
                indices[is_here] = own + self._first_sample[number]
        return indices

    def _phase(self, consumed: int) -> "_Phase":
        """Return the phase of the next sample; at the end of the blend, the last phase."""
        starts = [phase.start for phase in self._phases]
        return self._phases[bisect_left(starts, consumed + 1) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phase:
    """A part of the blend in which the same sources are used.

    Attributes:
        start, stop: first sample, and the one after the last; None if it does not end.
        units: of each source in a cycle.
        taken: samples of each source before the phase.
        name: seed and number, which determine the order in its blocks.
    """

    start: int
    stop: int | None
    units: tuple[int, ...]
    taken: tuple[int, ...]
    name: str

    def sources(self, consumed: int, count: int) -> NDArray[np.int64]:
        """Return [count]: source of each sample from ``consumed`` on, all in one block."""
        block, first = divmod(consumed - self.start, _BLOCK_SAMPLES)
        return _block_sources(self.units, self.name, block)[first : first + count]

    def counts(self, consumed: int) -> NDArray[np.int64]:
        """Return [sources]: how many of the first ``consumed`` samples of the blend are from each."""
        block, rest = divmod(consumed - self.start, _BLOCK_SAMPLES)
        cycle, number = divmod(block, _BLOCKS_PER_CYCLE)
        units = np.array(self.units, dtype=np.int64)
        full_blocks = _counts_before(self.units, number)
        begun = np.bincount(self.sources(consumed - rest, rest), minlength=len(units))
        counts: NDArray[np.int64] = np.array(self.taken) + cycle * units + full_blocks + begun
        return counts


def _phases(sources: Sequence[BlendedSource], seed: int) -> tuple[_Phase, ...]:
    """Return the phases: whenever a source reaches its limit, the others continue in a new phase."""
    phases: list[_Phase] = []
    limits = [source.max_samples for source in sources]
    start, taken = 0, (0,) * len(sources)
    while True:
        is_open = [limit is None or given < limit for given, limit in zip(taken, limits, strict=True)]
        if not any(is_open):
            return tuple(phases)
        weights = [source.weight * here for source, here in zip(sources, is_open, strict=True)]
        name = f"megaponder blend {seed} {len(phases)}"
        endless = _Phase(start=start, stop=None, units=share_units(weights), taken=taken, name=name)
        stops = [
            _first_with(endless, number, limit)
            for number, limit in enumerate(limits)
            if limit is not None and is_open[number]
        ]
        if not stops:
            return (*phases, endless)
        stop = min(stops)
        phases.append(_Phase(start=start, stop=stop, units=endless.units, taken=taken, name=name))
        start, taken = stop, tuple(int(count) for count in endless.counts(stop))


def _first_with(phase: _Phase, source: int, count: int) -> int:
    """Return the number of samples of the blend after which ``count`` are from a source."""
    cycles = (count - phase.taken[source]) // phase.units[source] + 1
    positions = range(phase.start, phase.start + cycles * _UNITS + 1)
    return positions[bisect_left(positions, count, key=lambda consumed: int(phase.counts(consumed)[source]))]


def share_units(weights: Sequence[float]) -> tuple[int, ...]:
    """Divide a cycle's units in proportion to weights; every weight above zero gets at least one."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * _UNITS
    units = np.where(exact > 0, np.maximum(1, np.floor(exact)), 0).astype(np.int64)
    # The largest share absorbs the error of rounding.
    units[int(np.argmax(exact))] += _UNITS - int(units.sum())
    return tuple(int(count) for count in units)


@functools.lru_cache(maxsize=64)
def _counts_before(units: tuple[int, ...], number: int) -> NDArray[np.int64]:
    """Return [sources]: samples of each in the first ``number`` blocks of a cycle.

    Block b has the units b, b + 256, ...: of the units below an edge, (edge - b) / 256, rounded up.
    """
    edges = np.concatenate([np.zeros(1, np.int64), np.cumsum(units)])
    # one row for each edge, one column for each block
    below = -(-(edges[:, None] - np.arange(number)) // _BLOCKS_PER_CYCLE)
    counts: NDArray[np.int64] = np.diff(below.sum(axis=1))
    return counts


@functools.lru_cache(maxsize=8)
def _block_sources(units: tuple[int, ...], name: str, block: int) -> NDArray[np.int64]:
    """Return [4096]: source of each sample of a block."""
    slots = np.arange(_BLOCK_SAMPLES, dtype=np.uint64)
    shuffled = permute(slots, _BLOCK_SAMPLES, permutation_keys(f"{name} {block}")).astype(np.int64)
    own_units = block % _BLOCKS_PER_CYCLE + _BLOCKS_PER_CYCLE * shuffled
    return np.searchsorted(np.cumsum(units), own_units, side="right").astype(np.int64)
