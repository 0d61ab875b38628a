"""The order of samples: a pure function of seed, epoch and position, without a list of samples in memory."""

import functools
import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_NUM_ROUNDS = 6


class Order(Protocol):
    """An order of samples that follows from the number of samples before."""

    @property
    def num_samples(self) -> int:
        """Samples are numbered below this."""

    def indices(self, consumed: int, count: int) -> NDArray[np.int64]:
        """Return the next ``count`` samples after ``consumed`` others."""

    def samples_by_source(self, consumed: int) -> dict[str, int]:
        """Return how many of the first ``consumed`` samples are from each source, if there are several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOrder:
    """The order of one source's samples: every epoch visits every sample once, each in its own order."""

    num_samples: int
    seed: int
    shuffled: bool

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"an order needs at least 1 sample, but num_samples is {self.num_samples}")

    def index(self, consumed: int) -> int:
        """Return the sample after ``consumed`` others."""
        return int(self.indices(consumed, 1)[0])

    def indices(self, consumed: int, count: int) -> NDArray[np.int64]:
        """Return the next ``count`` samples after ``consumed`` others, across the ends of epochs."""
        if consumed < 0:
            raise ValueError(f"consumed samples must not be negative, but are {consumed}")
        parts: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        while count > 0:
            epoch, position = divmod(consumed, self.num_samples)
            taken = min(count, self.num_samples - position)
            parts.append(self._epoch_indices(epoch, np.arange(position, position + taken, dtype=np.int64)))
            consumed, count = consumed + taken, count - taken
        return np.concatenate(parts)

    def samples_by_source(self, consumed: int) -> dict[str, int]:
        """Return nothing, because there is only one source."""
        return {}

    def _epoch_indices(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.shuffled:
            return positions
        keys = permutation_keys(f"megaponder sample order {self.seed} {epoch}")
        return permute(positions.astype(np.uint64), self.num_samples, keys).astype(np.int64)


def global_batch_indices(order: Order, consumed_samples: int, global_batch_size: int) -> list[int]:
    """Return the samples of the global batch after ``consumed_samples`` others, the same for every layout."""
    return [int(index) for index in order.indices(consumed_samples, global_batch_size)]


def permute(values: NDArray[np.uint64], size: int, keys: tuple[int, ...]) -> NDArray[np.uint64]:
    """Map values below ``size`` to values below ``size``, one to one.

    A Feistel network is a bijection below the smallest power of four that is at least ``size``. Values
    outside are mapped again until they are inside (cycle walking; Black and Rogaway, 2002): the result is
    still a bijection, and takes fewer than four mappings on average.
    """
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    values = _feistel(values, half_bits, keys)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], half_bits, keys)
    return values


def _feistel(values: NDArray[np.uint64], half_bits: int, keys: tuple[int, ...]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(key)) & mask)
    return (left << shift) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # the finalizer of splitmix64: every input bit reaches every output bit
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=16)
def permutation_keys(purpose: str) -> tuple[int, ...]:
    """Return keys for `permute`, which differ for every purpose."""
    digest = hashlib.sha512(purpose.encode()).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_NUM_ROUNDS))
