"""PonderLM-2: latent thoughts refined by Jacobi iteration (definitions 2.1 to 2.4)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from megatron_ext.methods.base import Halting, PassCarry, PassContext, PassInput, PonderMethod, Readout
from megatron_ext.ponder.passes import PassPlan, jacobi_plan
from megatron_ext.ponder.residual import squared_change
from megatron_ext.ponder.slots import merge_slots, rows_of_pass, split_slots


class PonderLM2(PonderMethod):
    """K latent thoughts per token; the logits come from the last one."""

    @property
    def embedding_scale(self) -> float:
        """sqrt(2.5 H), sqrt(H) with interpolation, 1 unscaled (definitions 2.2)."""
        if not self.config.scale_embeds:
            return 1.0
        return math.sqrt((1.0 if self.config.interpolation else 2.5) * self.hidden_size)

    def plan(self, num_jacobi_iterations: int) -> PassPlan:
        """Build-up, sweeps, final pass."""
        return jacobi_plan(self.config.num_latent_thoughts, num_jacobi_iterations)

    def enter(self, plan: PassPlan, index: int, embeddings: Tensor, carry: PassCarry | None) -> PassInput:
        """Slot 0 is the embedding, the others are the thoughts handed on."""
        del plan, index
        if carry is None:
            return PassInput(rows=embeddings)
        return PassInput(rows=rows_of_pass(embeddings, carry.thoughts), log_weight=carry.log_weight)

    def leave(
        self, plan: PassPlan, index: int, hidden: Tensor, carry: PassCarry | None, context: PassContext
    ) -> PassCarry:
        """Refresh every thought at once from this pass, and append one while building up."""
        slots = split_slots(hidden, plan.slots[index])
        num_thoughts = plan.slots[index + 1] - 1
        rows = self.next_thought(merge_slots(slots[:, :num_thoughts]), context.mix_embeddings)
        thoughts = split_slots(rows, num_thoughts)
        context.observe(f"thoughts/after_pass_{index:02d}", thoughts)
        sweep = plan.sweep_of(index)
        if sweep is not None:
            assert carry is not None, "a sweep refines thoughts of an earlier pass"
            self._record_residual(sweep, thoughts, carry.thoughts, context)
        return PassCarry(
            thoughts=thoughts, log_weight=self._log_weight(slots, plan.slots[index + 1], context)
        )

    def read(self, hidden: Tensor, context: PassContext) -> Readout:
        """The last slot of every token."""
        del context
        return Readout(hidden=split_slots(hidden, self.config.num_slots)[:, -1])

    def halt(self, first_hidden: Tensor) -> Halting:
        """Every token takes all K steps and is read at the last."""
        num_thoughts = self.config.num_latent_thoughts
        shares = first_hidden.new_zeros(num_thoughts + 1)
        shares[-1] = 1.0
        return Halting(log_weights=first_hidden.new_zeros(num_thoughts), shares=shares)

    def next_thought(self, hidden: Tensor, mix_embeddings: Callable[[Tensor], Tensor]) -> Tensor:
        """z^{k+1} = h^k, or the mixture of embeddings it predicts (definitions 2.1, 2.2)."""
        if not self.config.interpolation:
            return hidden
        return mix_embeddings(hidden) * self.embedding_scale

    def statistics_layout(self) -> dict[str, int]:
        """Squared change and norm of the thoughts in each sweep."""
        sweeps = self.config.max_jacobi_iterations
        return {"residual_change": sweeps, "residual_norm": sweeps}

    def _log_weight(self, slots: Tensor, num_slots: int, context: PassContext) -> Tensor | None:
        """All slots count in full."""
        del slots, num_slots, context
        return None

    def _record_residual(self, sweep: int, new: Tensor, old: Tensor, context: PassContext) -> None:
        change, norm = squared_change(new, old, context.axis.own_tokens(context.real))
        totals = context.axis.total_of_own_tokens(torch.stack([change, norm]))
        size = self.config.max_jacobi_iterations
        for name, value in zip(("residual_change", "residual_norm"), totals, strict=True):
            sums = context.statistics.setdefault(name, value.new_zeros(size))
            sums[sweep] += value
