"""Shapes of what pipeline stages receive, known from the pass plan instead of sent ahead of every tensor.

Megatron's schedules fix the order in which a stage receives: groups of as many micro-batches as there are
stages, in each group all passes one after another, backward with the passes in reverse.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from torch import Tensor

from megatron_ext.methods.base import Column
from megatron_ext.model.model import PonderModel
from megatron_ext.ponder.passes import PassPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class SentShapes:
    """Shapes of the rows that move between stages, [R, B, H + columns].

    Attributes:
        plan: of the step.
        length: tokens of which a rank holds the hidden states: S / cp, of that 1 / tp under sequence
            parallelism.
        batch_size: B.
        hidden_size: H.
        columns: channels that the column of the rows takes where there is one.
    """

    plan: PassPlan
    length: int
    batch_size: int
    hidden_size: int
    columns: int

    def within(self, index: int) -> tuple[int, int, int]:
        """Of the rows of a pass, between two stages; its first pass has no column."""
        columns = self.columns if index > 0 else 0
        return self.length * self.plan.slots[index], self.batch_size, self.hidden_size + columns

    def handed(self, index: int) -> tuple[int, int, int]:
        """Of what the end of a pass hands on to the next, from the last stage to the first."""
        rows = self.plan.rows_handed(index)
        return self.length * rows, self.batch_size, self.hidden_size + self.columns


def sent_shapes(module: PonderModel, plan: PassPlan, *, seq_length: int, batch_size: int) -> SentShapes:
    """Return the shapes of a step.

    Args:
        module: this rank's stage.
        plan: passes of the step.
        seq_length, batch_size: S and B of all micro-batches.
    """
    config = module.config
    wide = torch.promote_types(config.params_dtype, torch.float32)
    has_column = module.ponder.column is not Column.NONE
    sharing_ranks = config.tensor_model_parallel_size if config.sequence_parallel else 1
    return SentShapes(
        plan=plan,
        length=seq_length // module.context_axis.size // sharing_ranks,
        batch_size=batch_size,
        hidden_size=config.hidden_size,
        columns=wide.itemsize // config.params_dtype.itemsize if has_column else 0,
    )


class KnownShapes(P2PCommunicator):  # type: ignore[misc]  # Megatron is untyped
    """Megatron's communicator between stages, without the exchange of shapes for which the host waits."""

    def __init__(
        self, module: PonderModel, shapes: SentShapes, passes: range, *, num_micro_batches: int
    ) -> None:
        """Prepare one run of a schedule.

        Args:
            module: this rank's stage.
            shapes: of the step.
            passes: that the schedule runs, one after another.
            num_micro_batches: of the step.
        """
        super().__init__(module.pp_group, module.config)
        self._shapes = shapes
        self._passes = passes
        self._forward = self._received_forward(num_micro_batches)
        self._backward = self._received_backward(num_micro_batches)

    def _communicate_shapes(
        self,
        tensor_send_next: Tensor | None,
        tensor_send_prev: Tensor | None,
        recv_prev: bool,
        recv_next: bool,
    ) -> tuple[Any, Any]:
        del tensor_send_next, tensor_send_prev
        nothing = (0, 0, 0)
        return (
            next(self._forward) if recv_prev else nothing,
            next(self._backward) if recv_next else nothing,
        )

    def _received_forward(self, num_micro_batches: int) -> Iterator[tuple[int, int, int]]:
        is_first = self.pp_group.rank() == 0
        for group in self._groups(num_micro_batches):
            for index in self._passes:
                for _ in group:
                    if not is_first:
                        yield self._shapes.within(index)
                    elif index > self._passes[0]:
                        yield self._shapes.handed(index - 1)

    def _received_backward(self, num_micro_batches: int) -> Iterator[tuple[int, int, int]]:
        is_last = self.pp_group.rank() == self.pp_group.size() - 1
        for group in self._groups(num_micro_batches):
            for index in reversed(self._passes):
                for _ in group:
                    if not is_last:
                        yield self._shapes.within(index)
                    elif index < self._passes[-1]:
                        yield self._shapes.handed(index)

    def _groups(self, num_micro_batches: int) -> Iterator[range]:
        size = self.pp_group.size()
        for start in range(0, num_micro_batches, size):
            yield range(start, min(start + size, num_micro_batches))
