"""PonderLM: a token's input is enriched, pass by pass, by the embeddings it predicts (definitions 3.1)."""

from collections.abc import Callable

from torch import Tensor

from megatron_ext.methods.base import (
    Mixer,
    Observer,
    PassContext,
    PassRows,
    PonderMethod,
    RowRunner,
    Thought,
    ignore,
)
from megatron_ext.ponder.config import Mixture, Residual


class PonderLM(PonderMethod):
    """K times the layers' answer is fed back as an embedding; the answer to the last input is read."""

    def enter(
        self, index: int, embed: Callable[[], Tensor], handed: PassRows | None, context: PassContext
    ) -> PassRows:
        """E^0, then E^{i+1} = E^i + e^i; the running input stays on this stage, only e^i travels."""
        if handed is None:
            running, column = self._first_input(embed()), None
        else:
            base = 0 if self.config.residual is Residual.FROM_EMBEDDING else index - 1
            running, column = context.memory.recall(f"input/{base}") + handed.rows, handed.column
        context.observe(f"pass_inputs/pass_{index:02d}", running)
        return PassRows(rows=context.memory.keep(f"input/{index}", running), column=column)

    def leave(self, index: int, ended: PassRows, context: PassContext) -> PassRows:
        """e^i."""
        del index
        return PassRows(rows=self._answer(ended.rows, context.mix_embeddings))

    def think(
        self, rows: Tensor, run: RowRunner, mix_embeddings: Mixer, observe: Observer = ignore
    ) -> Thought:
        """All iterations; iteration i sees the keys of iteration i of the earlier tokens."""
        del observe
        first = running = self._first_input(rows)
        hidden = run(running)
        for iteration in range(1, self.config.num_slots):
            base = first if self.config.residual is Residual.FROM_EMBEDDING else running
            running = base + self._answer(hidden, mix_embeddings)
            hidden = run(running, version=iteration)
        return Thought(hidden=hidden, steps=self._every_step(rows))

    def _first_input(self, embeddings: Tensor) -> Tensor:
        return embeddings * self.config.num_latent_thoughts if self.config.multiply_embedding else embeddings

    def _answer(self, hidden: Tensor, mix_embeddings: Mixer) -> Tensor:
        """H -> e."""
        if self.config.mixture is Mixture.HIDDEN:
            return hidden
        return mix_embeddings(hidden) * self.embedding_scale
