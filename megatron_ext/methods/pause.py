"""Pause tokens: K copies of one token after every token give the model time to answer (definitions 4)."""

from torch import Tensor

from megatron_ext.methods.base import (
    Mixer,
    PassContext,
    PassRows,
    PonderMethod,
    Readout,
)
from megatron_ext.ponder.decode.sweeps import PromptTokens, read_all_rows
from megatron_ext.ponder.decode.think import Observer, RowRunner, Thought, ignore
from megatron_ext.ponder.slots import interleave_pauses, split_slots


class Pause(PonderMethod):
    """One pass over K + 1 rows per token; the last pause slot is read."""

    def tokens_of_rows(self, tokens: Tensor) -> Tensor:
        """Put its pauses after each token: [B, S] -> [B, S * (K + 1)]."""
        if self.config.num_latent_thoughts == 0:
            return tokens
        assert self.config.pause_token_id is not None, "pause tokens need an embedding row"
        return interleave_pauses(tokens, self.config.pause_token_id, self.config.num_latent_thoughts)

    def read(self, ended: PassRows, context: PassContext) -> Readout:
        """Read the last pause slot of each token."""
        num_slots = len(self.slots_read(context.plan.num_passes - 1, context))
        return Readout(hidden=split_slots(ended.rows, num_slots)[:, -1])

    def read_prompts(
        self,
        rows: Tensor,
        run: RowRunner,
        mix_embeddings: Mixer,
        prompts: PromptTokens,
        observe: Observer = ignore,
    ) -> Thought:
        """Run all rows of all tokens at once: pauses are known in advance."""
        del mix_embeddings, prompts, observe
        return read_all_rows(rows, run, num_slots=self.config.num_slots)
