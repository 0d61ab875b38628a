"""Rows of a pass that layers need not compute: those that nobody reads, and those that an earlier pass has.

S = tokens, n = slots per token in the pass, B = micro-batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from megatron_ext.model.memory import PassMemory
from megatron_ext.ponder.slots import rows_of_pass, split_slots, take_slots

FIRST_LAYER = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSlots:
    """The slots of each token that are read after the last layer; of the others it needs keys and values.

    Attributes:
        layer_number: of the last layer, 1-based.
        num_slots: n.
        slots: those that are read, consecutive ones.
    """

    layer_number: int
    num_slots: int
    slots: range

    @property
    def is_last_alone(self) -> bool:
        """Whether of several slots only the last one is read."""
        return self.num_slots > 1 and self.slots == range(self.num_slots - 1, self.num_slots)

    def take(self, rows: Tensor) -> Tensor:
        """Return the rows that are read: [S * n, B, ...] -> [S * len(slots), B, ...]."""
        return take_slots(rows, self.num_slots, self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedSlot:
    """Slot 0 of the first layer, which is entered with the same embedding in every pass of a micro-batch.

    What the layer makes of one row alone is computed once; attention also depends on the thoughts of earlier
    tokens, and is not.

    Attributes:
        is_computed: in this pass, for the later ones: the first pass, and the first that has gradients.
        memory: from pass to pass.
    """

    is_computed: bool
    memory: PassMemory

    def run(
        self, name: str, function: Callable[[Tensor], Tensor], rows: Tensor, *, num_slots: int, first: int = 0
    ) -> Tensor:
        """Run a function of single rows, on slot 0 only if no earlier pass has.

        Args:
            name: of the function, unique in the model.
            function: [R or R / tp, B, H] -> [R, B, ...].
            rows: [S * n, B, H], or the share of the tokens that this rank has.
            num_slots: n, the slots among `rows`.
            first: number of the first of them.
        Returns:
            The function's results for all rows, [S * n, B, ...].
        """
        if first > 0:
            return function(rows)
        if self.is_computed:
            return self._keep(name, function(rows), num_slots)
        kept = self.memory.recall(name)
        if num_slots == 1:
            return kept
        thoughts = take_slots(rows, num_slots, range(1, num_slots))
        return rows_of_pass(kept, split_slots(function(thoughts), num_slots - 1))

    def _keep(self, name: str, results: Tensor, num_slots: int) -> Tensor:
        if num_slots == 1:
            return self.memory.keep(name, results)
        of_slot = split_slots(results, num_slots)[:, 0].contiguous()
        return self.memory.keep_aside(name, of_slot, results)
