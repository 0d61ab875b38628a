"""Keys and values of a method whose steps attend to all earlier steps: the rows of each step, end to end.

A token has a row in each step that it ran and none in later ones, so a step's rows are those of some of the
tokens, in their order. A row of step k sees, of each step up to k, the rows of tokens up to its own.

R = rows of a call, B = sequences, G = key/value heads of this rank, w = channels of a key.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from megatron_ext.decoding_store import (
    Part,
    RowStore,
    StoredCall,
    WholeRows,
    merged_parts,
    parts_by_sequence,
    whole_lengths,
)
from megatron_ext.device import device
from megatron_ext.model.attention import StoredKeys
from megatron_ext.model.model import PonderModel


class StepStore(RowStore):
    """Room for the rows of every step of a batch of sequences; `num_rows` counts those of step 0."""

    def __init__(self, model: PonderModel, *, num_sequences: int, capacity: int, num_steps: int) -> None:
        """Reserve room for `capacity` tokens of each sequence, in each of `num_steps` steps."""
        super().__init__(model, num_sequences=num_sequences, capacity=capacity, num_versions=num_steps)
        # The tokens that have a row, by step and sequence, rising.
        self.tokens: list[list[list[int]]] = [[[] for _ in range(num_sequences)] for _ in range(num_steps)]

    def forget(self, sequences: Sequence[int]) -> None:
        """Drop all rows of some sequences."""
        super().forget(sequences)
        for of_step in self.tokens:
            for sequence in sequences:
                of_step[sequence].clear()

    def places(self, sequences: Sequence[int], places: Sequence[int], *, version: int = 0) -> StoredCall:
        """Assign the rows of a call to places.

        Args:
            sequences: of every row; rows of a sequence are neighbours.
            places: the token of every row, counted in its sequence; they rise, and none has a row yet.
            version: the step.
        Raises:
            IndexError: the store is full.
        """
        self.take(sequences, places)
        own_places = []
        for sequence, token in zip(sequences, places, strict=True):
            tokens = self.tokens[version][sequence]
            own_places.append(len(tokens))
            tokens.append(token)
        lengths = whole_lengths(sequences, places)
        if version == 0 and lengths is not None:
            return WholeRows(self, sequences, lengths, version)
        return StoredSteps(self, sequences, places, own_places, version)

    def write_beginnings(
        self, layer_number: int, version: int, sequences: Tensor, key: Tensor, value: Tensor
    ) -> None:
        """Store the first n rows of some sequences in one layer and step, [b, G, n, w]."""
        for stored, new in ((self._keys, key), (self._values, value)):
            stored[version, layer_number - 1, :, :, : new.shape[2]].index_copy_(0, sequences, new)

    def write_rows(
        self, layer_number: int, step: int, sequences: Tensor, places: Tensor, key: Tensor, value: Tensor
    ) -> None:
        """Store rows of one layer and step, [R, G, w]."""
        for stored, new in ((self._keys, key), (self._values, value)):
            stored[step, layer_number - 1][sequences, :, places] = new


class StoredSteps:
    """Where the rows of one call go. Implements :class:`megatron_ext.model.attention.KeyValueStore`.

    Attributes:
        sequences: of every row, [R].
    """

    def __init__(
        self,
        store: StepStore,
        sequences: Sequence[int],
        tokens: Sequence[int],
        places: Sequence[int],
        step: int,
    ) -> None:
        """See :meth:`StepStore.places`; `places` are those within the step."""
        self._store, self._step = store, step
        self.sequences = torch.tensor(sequences, device=device())
        self._places = torch.tensor(places, device=device())
        # The same in every layer.
        self._parts = [
            (part, [self._seen(part, tokens, of_step) for of_step in range(step + 1)])
            for part in merged_parts(parts_by_sequence(sequences, tokens))
        ]

    def extend(self, layer_number: int, key: Tensor, value: Tensor) -> Sequence[StoredKeys]:
        """See :class:`megatron_ext.model.attention.KeyValueStore`."""
        self._store.write_rows(layer_number, self._step, self.sequences, self._places, key, value)
        return [self._stored_keys(layer_number, part, seen) for part, seen in self._parts]

    def _stored_keys(
        self, layer_number: int, part: Part, seen: Sequence[tuple[int, Tensor | None]]
    ) -> StoredKeys:
        first: StoredKeys | None = None
        for of_step, (num_rows, visible) in reversed(list(enumerate(seen))):
            keys, values = self._store.read(layer_number, of_step, part.sequences, num_rows)
            others = () if first is None else (first, *first.others)
            first = StoredKeys(rows=part.rows, keys=keys, values=values, visible=visible, others=others)
        assert first is not None, "step 0 has keys"
        return first

    def _seen(self, part: Part, tokens: Sequence[int], of_step: int) -> tuple[int, Tensor | None]:
        """Return the rows of a step that are read, and which rows see which; None where all see all."""
        of_sequences = self._store.tokens[of_step][part.sequences]
        of_rows = of_sequences if part.has_one_row_each else of_sequences * len(tokens[part.rows])
        counts = [
            bisect_right(stored, token) for stored, token in zip(of_rows, tokens[part.rows], strict=True)
        ]
        num_rows = max(counts)
        if all(one == other for one, other in pairwise(counts)):
            return num_rows, None
        order = torch.arange(num_rows, device=self._places.device)
        return num_rows, order < torch.tensor(counts, device=self._places.device).unsqueeze(1)
