"""PonderLM-2: latent thoughts refined by Jacobi iteration (definitions 2.1 to 2.4)."""

from collections.abc import Callable

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
from megatron_ext.methods.sweeps import SlotDecision, read_by_sweeps
from megatron_ext.ponder.residual import squared_change
from megatron_ext.ponder.slots import merge_slots, rows_of_pass, split_slots


class PonderLM2(PonderMethod):
    """K latent thoughts per token; the logits come from the last one."""

    def enter(
        self, index: int, embed: Callable[[], Tensor], handed: PassRows | None, context: PassContext
    ) -> PassRows:
        """Slot 0 is the embedding, the others are the thoughts handed on."""
        del index
        if handed is None:
            return PassRows(rows=context.memory.keep("embeddings", embed()))
        embeddings = context.memory.recall("embeddings")
        num_thoughts = handed.rows.shape[0] // embeddings.shape[0]
        thoughts = split_slots(handed.rows, num_thoughts)
        column = None
        if handed.column is not None:
            log_weight = split_slots(handed.column, num_thoughts)
            column = merge_slots(torch.cat([torch.zeros_like(log_weight[:, :1]), log_weight], dim=1))
        return PassRows(rows=rows_of_pass(embeddings, thoughts), column=column)

    def leave(self, index: int, ended: PassRows, context: PassContext) -> PassRows:
        """Refresh every thought at once from this pass, and append one while building up."""
        plan = context.plan
        slots = split_slots(ended.rows, plan.slots[index])
        num_thoughts = plan.slots[index + 1] - 1
        rows = self._next_thought(merge_slots(slots[:, :num_thoughts]), context.mix_embeddings)
        thoughts = split_slots(rows, num_thoughts)
        context.observe(f"thoughts/after_pass_{index:02d}", thoughts)
        context.memory.note(f"thoughts/{index}", thoughts)
        sweep = plan.sweep_of(index)
        if sweep is not None:
            self._record_residual(sweep, thoughts, context.memory.recall(f"thoughts/{index - 1}"), context)
        return PassRows(rows=merge_slots(thoughts), column=self._log_weight(slots, num_thoughts, context))

    def read(self, ended: PassRows, context: PassContext) -> Readout:
        """The last slot of every token."""
        del context
        return Readout(hidden=split_slots(ended.rows, self.config.num_slots)[:, -1])

    def think(
        self, rows: Tensor, run: RowRunner, mix_embeddings: Mixer, observe: Observer = ignore
    ) -> Thought:
        """All slots, one after another."""
        del observe
        hidden = run(rows)
        for _ in range(self.config.num_latent_thoughts):
            hidden = run(self._next_thought(hidden, mix_embeddings))
        return Thought(hidden=hidden, steps=self._every_step(rows))

    def read_prompts(
        self,
        rows: Tensor,
        run: RowRunner,
        mix_embeddings: Mixer,
        prompts: PromptTokens,
        observe: Observer = ignore,
    ) -> Thought:
        """By Jacobi sweeps over the slots that the tokens need."""

        def decide(token_hidden: Tensor) -> SlotDecision:
            return self._decide(token_hidden, observe)

        def next_thought(hidden: Tensor) -> Tensor:
            return self._next_thought(hidden, mix_embeddings)

        slots = read_by_sweeps(
            rows[0],
            prompts,
            num_thoughts=self.config.num_latent_thoughts,
            run=run,
            decide=decide,
            next_thought=next_thought,
        )
        observe("prompt_slots/inputs", slots.inputs)
        observe("prompt_slots/hidden", slots.hidden)
        return self._read_slots(slots.hidden, slots.decision)

    def _decide(self, token_hidden: Tensor, observe: Observer) -> SlotDecision:
        """Which slots a token takes, by its slot 0, [1, N, H]: here all, without weights."""
        del observe
        return SlotDecision(steps=self._every_step(token_hidden))

    def _read_slots(self, hidden: Tensor, decision: SlotDecision) -> Thought:
        """The last slot: [N, K + 1, H] -> [1, N, H]."""
        return Thought(hidden=hidden[:, -1].unsqueeze(0), steps=decision.steps)

    def statistics_layout(self) -> dict[str, int]:
        """Squared change and norm of the thoughts in each sweep."""
        sweeps = self.config.max_jacobi_iterations
        return {"residual_change": sweeps, "residual_norm": sweeps}

    def _next_thought(self, hidden: Tensor, mix_embeddings: Mixer) -> Tensor:
        """z^{k+1} = h^k, or the mixture of embeddings it predicts (definitions 2.1, 2.2)."""
        return mix_embeddings(hidden) * self.embedding_scale if self.mixes_embeddings else hidden

    def _log_weight(self, slots: Tensor, num_thoughts: int, context: PassContext) -> Tensor | None:
        """Log w of the thoughts in the next pass, [S * num_thoughts, B]: here all count in full."""
        del slots, num_thoughts, context
        return None

    def _record_residual(self, sweep: int, new: Tensor, old: Tensor, context: PassContext) -> None:
        change, norm = squared_change(new, old, context.axis.own_tokens(context.real))
        totals = context.axis.total_of_own_tokens(torch.stack([change, norm]))
        size = self.config.max_jacobi_iterations
        for name, value in zip(("residual_change", "residual_norm"), totals, strict=True):
            sums = context.statistics.setdefault(name, value.new_zeros(size))
            sums[sweep] += value
