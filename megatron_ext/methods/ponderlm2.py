"""PonderLM-2: latent thoughts refined by Jacobi iteration (definitions 2.1 to 2.4)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from megatron_ext.methods.base import (
    Mixer,
    PassContext,
    PassRows,
    PonderMethod,
    Readout,
)
from megatron_ext.ponder.decode.sweeps import PromptTokens, read_by_sweeps
from megatron_ext.ponder.decode.think import (
    ByMixture,
    Observer,
    RowRunner,
    SlotDecision,
    Thinking,
    Thought,
    all_slots,
    ignore,
    think_in_slots,
)
from megatron_ext.ponder.residual import residual, squared_change
from megatron_ext.ponder.slots import merge_slots, rows_of_pass, split_slots


class PonderLM2(PonderMethod):
    """K latent thoughts per token; the logits come from the last one."""

    def enter(
        self, index: int, embed: Callable[[], Tensor], handed: PassRows | None, context: PassContext
    ) -> PassRows:
        """Enter the embedding in slot 0 and the thoughts handed on in the others."""
        if handed is None:
            return PassRows(rows=context.memory.keep("embeddings", embed()))
        if index == context.plan.first_with_gradient:
            # Those of the passes before have no graph.
            embeddings = context.memory.keep("embeddings", embed())
        else:
            embeddings = context.memory.recall("embeddings")
        num_thoughts = handed.rows.shape[0] // embeddings.shape[0]
        thoughts = split_slots(handed.rows, num_thoughts)
        column = None
        if handed.column is not None:
            log_weight = split_slots(handed.column, num_thoughts)
            column = merge_slots(torch.cat([torch.zeros_like(log_weight[:, :1]), log_weight], dim=1))
        return PassRows(rows=rows_of_pass(embeddings, thoughts), column=column)

    def leave(self, index: int, ended: PassRows, context: PassContext) -> PassRows:
        """Refresh all thoughts at once from this pass, and append one while building up."""
        plan = context.plan
        slots = split_slots(ended.rows, len(self.slots_read(index, context)))
        num_thoughts = plan.slots[index + 1] - 1
        rows = self._next_thought(merge_slots(slots[:, :num_thoughts]), context.mix_embeddings)
        thoughts = split_slots(rows, num_thoughts)
        context.observe(f"thoughts/after_pass_{index:02d}", thoughts)
        context.memory.note(f"thoughts/{index}", thoughts)
        sweep = plan.sweep_of(index)
        if sweep is not None:
            sums = self._record_residual(
                sweep, thoughts, context.memory.recall(f"thoughts/{index - 1}"), context
            )
            _end_converged_sweeps(index, sums, context)
        if not plan.has_gradient(index):
            # No graph holds them, so that they need not wait for the end of the forward.
            context.memory.forget(f"thoughts/{index - 1}")
        column = self._log_weight(index, slots, num_thoughts, context)
        return PassRows(rows=merge_slots(thoughts), column=column)

    def read(self, ended: PassRows, context: PassContext) -> Readout:
        """Read the last slot of each token."""
        num_slots = len(self.slots_read(context.plan.num_passes - 1, context))
        return Readout(hidden=split_slots(ended.rows, num_slots)[:, -1])

    def think(self, rows: Tensor, mix_embeddings: Mixer, observe: Observer = ignore) -> Thinking:
        """Run the slots that the tokens take, one after another."""
        return think_in_slots(
            rows,
            num_thoughts=self.config.num_latent_thoughts,
            decide=partial(self._decide, observe=observe),
            next_thought=ByMixture(self._next_thought, mix_embeddings),
            halting=self.halting,
        )

    def read_prompts(
        self,
        rows: Tensor,
        run: RowRunner,
        mix_embeddings: Mixer,
        prompts: PromptTokens,
        observe: Observer = ignore,
    ) -> Thought:
        """Read by Jacobi sweeps over the slots that the tokens take."""
        slots = read_by_sweeps(
            rows[0],
            prompts,
            num_thoughts=self.config.num_latent_thoughts,
            run=run,
            decide=partial(self._decide, observe=observe),
            next_thought=ByMixture(self._next_thought, mix_embeddings),
            halting=self.halting,
        )
        observe("prompt_slots/inputs", slots.inputs)
        observe("prompt_slots/hidden", slots.hidden)
        return slots.decision.read(slots.hidden)

    def _decide(self, token_hidden: Tensor, observe: Observer) -> SlotDecision:
        """Decide which slots tokens take, by their slot 0, [1, N, H]."""
        del observe
        return all_slots(token_hidden, self.config.num_latent_thoughts)

    def statistics_layout(self) -> dict[str, int]:
        """Return squared change and norm of the thoughts in each sweep."""
        sweeps = self.config.max_jacobi_iterations
        return {"residual_change": sweeps, "residual_norm": sweeps}

    def _next_thought(self, hidden: Tensor, mix_embeddings: Mixer) -> Tensor:
        """z^{k+1} = h^k, or the mixture of embeddings it predicts (definitions 2.1, 2.2)."""
        return mix_embeddings(hidden) * self.embedding_scale if self.mixes_embeddings else hidden

    def _log_weight(
        self, index: int, slots: Tensor, num_thoughts: int, context: PassContext
    ) -> Tensor | None:
        """Return log w of the thoughts in the next pass, [S * num_thoughts, B]; None: all weigh the same."""
        del index, slots, num_thoughts, context
        return None

    def _record_residual(self, sweep: int, new: Tensor, old: Tensor, context: PassContext) -> Tensor:
        """Add the residual's sums to the statistics, and return them: squared change and norm, [2]."""
        change, norm = squared_change(new, old, context.axis.own_tokens(context.real))
        totals = context.axis.total_of_own_tokens(torch.stack([change, norm]))
        size = max(self.config.max_jacobi_iterations, context.plan.num_sweeps)
        for name, value in zip(("residual_change", "residual_norm"), totals, strict=True):
            sums = context.statistics.setdefault(name, value.new_zeros(size))
            sums[sweep] += value
        return totals


def _end_converged_sweeps(index: int, sums: Tensor, context: PassContext) -> None:
    """Leave the remaining sweeps out where this one has hardly moved the thoughts.

    Reading the residual waits for the device, so it is read only where there is a sweep to leave out. All
    ranks that work on a micro-batch take the branch of the largest of their values, which are equal but for
    rounding; a data-parallel rank decides for its own micro-batches, as one process would for the same ones.
    """
    ended = context.plan.ended_after(index)
    if context.sweep_tolerance is None or ended == context.plan:
        return
    change, norm = sums
    if float(context.axis.max_over_ranks(residual(change, norm))) <= context.sweep_tolerance:
        context.plan = ended
