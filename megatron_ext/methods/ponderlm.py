"""PonderLM: a token's input is enriched, pass by pass, by the embeddings it predicts (definitions 3.1)."""

from collections.abc import Callable

from torch import Tensor

from megatron_ext.methods.base import (
    Mixer,
    PassContext,
    PassRows,
    PonderMethod,
)
from megatron_ext.ponder.config import Mixture, Residual
from megatron_ext.ponder.decode.think import ByMixture, Observer, Thinking, ignore, think_by_feedback


class PonderLM(PonderMethod):
    """The layers' output is fed back K times as an embedding; the output for the last input is read."""

    def enter(
        self, index: int, embed: Callable[[], Tensor], handed: PassRows | None, context: PassContext
    ) -> PassRows:
        """Enter E^0, then E^{i+1} = E^i + e^i; the running input stays on this stage, only e^i travels."""
        if handed is None:
            running, column = self._first_input(embed()), None
        else:
            base = 0 if self.config.residual is Residual.FROM_EMBEDDING else index - 1
            running, column = context.memory.recall(f"input/{base}") + handed.rows, handed.column
        context.observe(f"pass_inputs/pass_{index:02d}", running)
        return PassRows(rows=context.memory.keep(f"input/{index}", running), column=column)

    def leave(self, index: int, ended: PassRows, context: PassContext) -> PassRows:
        """Hand on e^i."""
        del index
        return PassRows(rows=self._feed_back(ended.rows, context.mix_embeddings))

    def think(self, rows: Tensor, mix_embeddings: Mixer, observe: Observer = ignore) -> Thinking:
        """Run all iterations."""
        del observe
        return think_by_feedback(
            self._first_input(rows),
            num_iterations=self.config.num_latent_thoughts,
            feed_back=ByMixture(self._feed_back, mix_embeddings),
            from_first=self.config.residual is Residual.FROM_EMBEDDING,
        )

    def _first_input(self, embeddings: Tensor) -> Tensor:
        return embeddings * self.config.num_latent_thoughts if self.config.multiply_embedding else embeddings

    def _feed_back(self, hidden: Tensor, mix_embeddings: Mixer) -> Tensor:
        """H -> e."""
        if self.config.mixture is Mixture.HIDDEN:
            return hidden
        return mix_embeddings(hidden) * self.embedding_scale
