"""Looped language model: the layers run K + 1 times on their own output (definitions 4)."""

from collections.abc import Callable

from torch import Tensor

from megatron_ext.methods.base import (
    Mixer,
    PassContext,
    PassRows,
    PonderMethod,
)
from megatron_ext.ponder.decode.think import Observer, Thinking, ignore, think_in_loops


class Loop(PonderMethod):
    """Nothing is added or normalized between the loops; the final norm comes once, at the end."""

    def enter(
        self, index: int, embed: Callable[[], Tensor], handed: PassRows | None, context: PassContext
    ) -> PassRows:
        """Enter the embeddings, then the output of the loop before."""
        del index, context
        return PassRows(rows=embed()) if handed is None else handed

    def leave(self, index: int, ended: PassRows, context: PassContext) -> PassRows:
        """Hand on the hidden state as it is."""
        del index, context
        return ended

    def think(self, rows: Tensor, mix_embeddings: Mixer, observe: Observer = ignore) -> Thinking:
        del mix_embeddings, observe
        return think_in_loops(rows, num_iterations=self.config.num_latent_thoughts)
