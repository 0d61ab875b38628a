"""Pause tokens: K copies of one token after every token give the model time to answer (definitions 4)."""

import torch
from torch import Tensor

from megatron_ext.methods.base import (
    Mixer,
    Observer,
    PassContext,
    PassRows,
    PonderMethod,
    PromptTokens,
    Readout,
    RowRunner,
    Thought,
    ignore,
)
from megatron_ext.ponder.slots import interleave_pauses, split_slots


class Pause(PonderMethod):
    """One pass over K + 1 rows per token; the last pause slot is read."""

    def tokens_of_rows(self, tokens: Tensor) -> Tensor:
        """Every token and its pauses: [B, S] -> [B, S * (K + 1)]."""
        if self.config.num_latent_thoughts == 0:
            return tokens
        assert self.config.pause_token_id is not None, "pause tokens need an embedding row"
        return interleave_pauses(tokens, self.config.pause_token_id, self.config.num_latent_thoughts)

    def read(self, ended: PassRows, context: PassContext) -> Readout:
        """The last pause slot of every token."""
        del context
        return Readout(hidden=split_slots(ended.rows, self.config.num_slots)[:, -1])

    def think(
        self, rows: Tensor, run: RowRunner, mix_embeddings: Mixer, observe: Observer = ignore
    ) -> Thought:
        """The token, then its pauses."""
        del mix_embeddings, observe
        for row in rows.split(1):
            hidden = run(row)
        return Thought(hidden=hidden, steps=self._every_step(rows))

    def read_prompts(
        self,
        rows: Tensor,
        run: RowRunner,
        mix_embeddings: Mixer,
        prompts: PromptTokens,
        observe: Observer = ignore,
    ) -> Thought:
        """All rows of all tokens in one go."""
        del mix_embeddings, observe
        num_tokens, num_slots = len(prompts.sequences), self.config.num_slots
        tokens = torch.arange(num_tokens, device=rows.device).repeat_interleave(num_slots)
        hidden = run(rows, tokens=tokens)
        return Thought(
            hidden=hidden[:, num_slots - 1 :: num_slots], steps=self._every_step(rows[:, :num_tokens])
        )
