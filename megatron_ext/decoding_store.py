"""Keys and values of the rows of several sequences, allocated once; rows that never ran take no room.

A method that iterates over the same row keeps one version per iteration: iteration i of a token reads version
i of every earlier token, which for a token that halted before is that of its last iteration (definitions
3.2). Other methods have a single version, and a row for every slot that ran.

R = rows of a call, B = sequences, G = key/value heads of this rank, w = channels of a key, its weight's
column included.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from megatron_ext.device import as_integers, device
from megatron_ext.model.attention import KeyValueStore, StoredKeys
from megatron_ext.model.model import PonderModel
from megatron_ext.ponder.attention import extended_size


class StoredCall(KeyValueStore, Protocol):
    """The stored rows of one call.

    Attributes:
        sequences: of every row, [R].
    """

    sequences: Tensor


class RowStore:
    """Room for the rows of a batch of sequences, and how many of each are taken.

    Attributes:
        num_rows: rows in use, by sequence.
        capacity: rows a sequence may have.
        dtype: of keys and values.
        weight_dtype: of the weights of keys.
    """

    def __init__(
        self,
        model: PonderModel,
        *,
        num_sequences: int,
        capacity: int,
        num_versions: int = 1,
        has_weights: bool = False,
    ) -> None:
        """Reserve room.

        Args:
            model: read for its sizes.
            num_sequences: B.
            capacity: rows of each sequence.
            num_versions: versions of each row.
            has_weights: whether keys are weighted.
        """
        config = model.config
        dtype = config.params_dtype
        self.dtype, self.weight_dtype = dtype, torch.promote_types(dtype, torch.float32)
        size = extended_size(config.kv_channels, self.weight_dtype if has_weights else None, dtype)
        groups = max(config.num_query_groups // model.axis.size, 1)
        shape = (num_versions, config.num_layers, num_sequences, groups, capacity, size)
        # Zeros: a masked key or value must be finite, since 0 times NaN is NaN.
        self._keys = torch.zeros(shape, dtype=dtype, device=device())
        self._values = torch.zeros_like(self._keys)
        self.capacity = capacity
        self.num_rows = [0] * num_sequences

    def forget(self, sequences: Sequence[int]) -> None:
        """Drop all rows of some sequences."""
        for sequence in sequences:
            self.num_rows[sequence] = 0

    def places(self, sequences: Sequence[int], places: Sequence[int], *, version: int = 0) -> StoredCall:
        """Assign the rows of a call to places, which count as taken from now on.

        Args:
            sequences: of every row; rows of a sequence are neighbours.
            places: of every row in its sequence, rising within it; all places before are taken, some of them
                perhaps by rows of the same call.
            version: which version of the rows.
        Raises:
            IndexError: the store is full.
        """
        self.take(sequences, places)
        lengths = whole_lengths(sequences, places)
        if lengths is not None:
            return WholeRows(self, sequences, lengths, version)
        return StoredRows(self, sequences, places, version)

    def take(self, sequences: Sequence[int], places: Sequence[int]) -> None:
        """Count places as taken.

        Raises:
            IndexError: the store is full.
        """
        if max(places) >= self.capacity:
            raise IndexError(f"a store of {self.capacity} rows cannot take row {max(places) + 1}")
        for sequence, place in zip(sequences, places, strict=True):
            self.num_rows[sequence] = max(self.num_rows[sequence], place + 1)

    def write(self, layer_number: int, rows: "StoredRows", key: Tensor, value: Tensor) -> None:
        """Store rows of one layer, [R, G, w]; versions that a row has not reached repeat its last one."""
        for stored, new in ((self._keys, key), (self._values, value)):
            # The versions and the layer's sequences: [V, B, G, capacity, w]
            of_layer = stored[rows.version :, layer_number - 1]
            if rows.common_place is not None:
                # Both sides are seen as [V, b, G, w]
                of_layer[:, rows.common_sequences, :, rows.common_place] = new
            else:
                # Indexed dims come first: [V, G, R, w] seen as [R, V, G, w]
                of_layer[:, rows.sequences, :, rows.places] = new.unsqueeze(1)

    def write_beginnings(
        self, layer_number: int, version: int, sequences: Tensor, key: Tensor, value: Tensor
    ) -> None:
        """Store the first n rows of some sequences in one layer, [b, G, n, w], as :meth:`write` does."""
        for stored, new in ((self._keys, key), (self._values, value)):
            stored[version:, layer_number - 1, :, :, : new.shape[2]].index_copy_(
                1, sequences, new.expand(stored.shape[0] - version, *new.shape)
            )

    def read(self, layer_number: int, version: int, sequences: slice, num_rows: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of neighbouring sequences, [b, G, num_rows, w] each, without a copy."""
        keys, values = (
            stored[version, layer_number - 1, sequences, :, :num_rows]
            for stored in (self._keys, self._values)
        )
        return keys, values


# Rows of sequences of different lengths attend together where that reads at most so many times the keys that
# they see: on short texts a call costs more than the keys that it reads for nothing.
MOST_KEYS_READ = 2.0


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a call that attend together: one of each of neighbouring sequences, or several of a single one.

    Attributes:
        rows: which rows of the call.
        sequences: which sequences of the store.
        num_visible: most stored rows that one of them sees, itself included.
        total_visible: of one row of each sequence, all together; else as num_visible.
        is_whole: the call has all those rows.
    """

    rows: slice
    sequences: slice
    num_visible: int
    total_visible: int
    is_whole: bool

    @property
    def has_one_row_each(self) -> bool:
        """Whether there are as many rows as sequences."""
        return len(range(self.rows.start, self.rows.stop)) == len(
            range(self.sequences.start, self.sequences.stop)
        )

    @property
    def sees_all(self) -> bool:
        """Whether every row sees all rows that are read."""
        num_sequences = self.sequences.stop - self.sequences.start
        return self.has_one_row_each and self.total_visible == num_sequences * self.num_visible


class StoredRows:
    """Where the rows of one call go. Implements :class:`megatron_ext.model.attention.KeyValueStore`.

    Attributes:
        version: of the rows.
        sequences, places: of every row, [R].
        common_place: where all rows go, if they are one of each of the neighbouring `common_sequences`: a
            plain copy then stores them; else None.
    """

    def __init__(
        self, store: RowStore, sequences: Sequence[int], places: Sequence[int], version: int
    ) -> None:
        """See :meth:`RowStore.places`."""
        self._store = store
        self.version = version
        self.sequences = torch.tensor(sequences, device=device())
        self.places = torch.tensor(places, device=device())
        parts = list(merged_parts(parts_by_sequence(sequences, places)))
        self.common_sequences = parts[0].sequences
        self.common_place = (
            places[0] if len(parts) == 1 and parts[0].has_one_row_each and len({*places}) == 1 else None
        )
        # The same in every layer.
        self._parts = [(part, *self._visible(part)) for part in parts]

    def extend(self, layer_number: int, key: Tensor, value: Tensor) -> Sequence[StoredKeys]:
        """See :class:`megatron_ext.model.attention.KeyValueStore`."""
        self._store.write(layer_number, self, key, value)
        return [self._stored_keys(layer_number, *part) for part in self._parts]

    def _stored_keys(
        self, layer_number: int, part: Part, visible: Tensor | None, bias: Tensor | None
    ) -> StoredKeys:
        keys, values = self._store.read(layer_number, self.version, part.sequences, part.num_visible)
        causal = part.is_whole and not part.has_one_row_each
        return StoredKeys(rows=part.rows, keys=keys, values=values, causal=causal, visible=visible, bias=bias)

    def _visible(self, part: Part) -> tuple[Tensor | None, Tensor | None]:
        """What rows see, [q or b, R] bool, and the same as a bias; None where that is all, or all before."""
        if part.sees_all or part.is_whole:
            return None, None
        order = torch.arange(part.num_visible, device=self.places.device)
        visible = order <= self.places[part.rows].unsqueeze(1)
        bias = torch.zeros(visible.shape, dtype=self._store.dtype, device=visible.device)
        return visible, bias.masked_fill_(~visible, -math.inf)


def whole_lengths(sequences: Sequence[int], places: Sequence[int]) -> list[int] | None:
    """Return how many rows each sequence has in a call with all of its rows; None where one has others too.

    A call of one row of each sequence is not meant.
    """
    parts = list(parts_by_sequence(sequences, places))
    if len(parts) == len(sequences) or not all(part.is_whole for part in parts):
        return None
    return [part.num_visible for part in parts]


class WholeRows:
    """All rows of some sequences. Implements :class:`StoredCall`.

    They attend to each other as they come out of the layer; sequences of one length attend together.

    Attributes:
        sequences: of every row, [R].
        is_draft: store nothing before :meth:`commit`, because another call may replace the rows.
    """

    def __init__(
        self, store: RowStore, sequences: Sequence[int], lengths: Sequence[int], version: int
    ) -> None:
        """See :meth:`RowStore.places`; `lengths` are the rows of each sequence, which are neighbours."""
        self._store, self._version = store, version
        self.sequences = as_integers(sequences)
        self.is_draft = False
        # Layer, sequences, keys and values that are not stored yet.
        self._drafts: list[tuple[int, list[int], Tensor, Tensor]] = []
        # Neighbours of one length: rows of the call, and the sequences.
        self._batches: list[tuple[slice, list[int]]] = []
        start = 0
        for length, same in groupby(lengths):
            stop = start + length * len(list(same))
            self._batches.append((slice(start, stop), list(sequences[start:stop:length])))
            start = stop

    def extend(self, layer_number: int, key: Tensor, value: Tensor) -> Sequence[StoredKeys]:
        """See :class:`megatron_ext.model.attention.KeyValueStore`."""
        parts = []
        for rows, sequences in self._batches:
            # [b * n, G, w] -> [b, G, n, w]
            keys, values = (x[rows].unflatten(0, (len(sequences), -1)).transpose(1, 2) for x in (key, value))
            if self.is_draft:
                self._drafts.append((layer_number, sequences, keys, values))
            else:
                self._write(layer_number, sequences, keys, values)
            has_one_row_each = keys.shape[2] == 1
            parts.append(StoredKeys(rows=rows, keys=keys, values=values, causal=not has_one_row_each))
        return parts

    def commit(self, replaced: Collection[int] = ()) -> None:
        """Store the rows of a draft, but for those of sequences whose rows another call replaces."""
        for layer_number, sequences, keys, values in self._drafts:
            kept = [index for index, sequence in enumerate(sequences) if sequence not in replaced]
            if kept:
                of_kept = as_integers(kept)
                self._write(
                    layer_number, [sequences[index] for index in kept], keys[of_kept], values[of_kept]
                )
        self._drafts.clear()

    def _write(self, layer_number: int, sequences: Sequence[int], keys: Tensor, values: Tensor) -> None:
        self._store.write_beginnings(layer_number, self._version, as_integers(sequences), keys, values)


class JoinedCalls:
    """Rows of several versions in one call, those of a version side by side. Implements :class:`StoredCall`.

    Attributes:
        sequences: of every row, [R].
    """

    def __init__(self, calls: Sequence[StoredCall]) -> None:
        """Join the rows of some calls, in order; no two of them have rows of one sequence."""
        self.sequences = torch.cat([call.sequences for call in calls])
        self._calls = calls
        self._sizes = [len(call.sequences) for call in calls]

    def extend(self, layer_number: int, key: Tensor, value: Tensor) -> Sequence[StoredKeys]:
        """See :class:`megatron_ext.model.attention.KeyValueStore`."""
        parts: list[StoredKeys] = []
        start = 0
        for call, new in zip(
            self._calls, zip(key.split(self._sizes), value.split(self._sizes), strict=True), strict=True
        ):
            parts += [_moved(part, start) for part in call.extend(layer_number, *new)]
            start += len(new[0])
        return parts


def _moved(part: StoredKeys, start: int) -> StoredKeys:
    return replace(part, rows=slice(part.rows.start + start, part.rows.stop + start))


def parts_by_sequence(sequences: Sequence[int], places: Sequence[int]) -> Iterator[Part]:
    """Cut the rows of a call where the sequence changes."""
    start = 0
    for stop in range(1, len(sequences) + 1):
        if stop < len(sequences) and sequences[stop] == sequences[start]:
            continue
        sequence, num_visible = sequences[start], places[stop - 1] + 1
        is_whole = stop - start == num_visible
        yield Part(slice(start, stop), slice(sequence, sequence + 1), num_visible, num_visible, is_whole)
        start = stop


def merged_parts(parts: Iterator[Part]) -> Iterator[Part]:
    """Join single rows of neighbouring sequences that see about equally many rows, for one call."""
    current = next(parts)
    for part in parts:
        joined = _joined(current, part)
        if joined is None:
            yield current
        current = joined or part
    yield current


def _joined(part: Part, following: Part) -> Part | None:
    """Join two parts; return None where they cannot be joined, or would read too many keys for nothing."""
    if not (part.has_one_row_each and following.has_one_row_each):
        return None
    if following.sequences.start != part.sequences.stop:
        return None
    sequences = slice(part.sequences.start, following.sequences.stop)
    most = max(part.num_visible, following.num_visible)
    total = part.total_visible + following.total_visible
    if (sequences.stop - sequences.start) * most > MOST_KEYS_READ * total:
        return None
    rows = slice(part.rows.start, following.rows.stop)
    return Part(rows, sequences, most, total, part.is_whole and following.is_whole)
