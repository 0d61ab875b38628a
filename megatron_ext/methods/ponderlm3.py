"""PonderLM-3: latent thoughts, of which each token takes as many as it needs (definitions 2.5)."""

import math

import torch
from torch import Tensor, nn

from megatron_ext.methods.base import (
    PassContext,
    PassRows,
    Readout,
    build_decider,
)
from megatron_ext.methods.ponderlm2 import PonderLM2
from megatron_ext.ponder import halting
from megatron_ext.ponder.config import PonderConfig, Reading
from megatron_ext.ponder.decode.think import Observer, SlotDecision, slots_above
from megatron_ext.ponder.penalties import entropy_gap, halting_penalty
from megatron_ext.ponder.slots import merge_slots, split_slots

# The router starts with 0.9 of the probability on the last step: close to PonderLM-2 (definitions 2.7).
LAST_STEP_ODDS = 9.0


class PonderLM3(PonderLM2):
    """A router on slot 0 weighs the steps: softly in training, with hard pruning at inference."""

    def __init__(self, config: PonderConfig, hidden_size: int, *, decides: bool = True) -> None:
        """Build the router Linear(H, H/4), exact GELU, Linear(H/4, K + 1)."""
        super().__init__(config, hidden_size, decides=decides)
        if decides:
            self.router = build_decider(config, hidden_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize with 0.9 on step K, whatever the token."""
        if not self.decides:
            return
        assert isinstance(self.router, nn.Sequential)
        output = self.router[2]
        assert isinstance(output, nn.Linear)
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
        if self.config.num_latent_thoughts > 0:
            output.bias[-1] = math.log(LAST_STEP_ODDS * self.config.num_latent_thoughts)

    def route(self, token_hidden: Tensor) -> Tensor:
        """Router logits in at least float32, whatever the weights' dtype: small tail masses need it.

        Args:
            token_hidden: h^0, [S, B, H].
        Returns:
            [S, B, K + 1]. Where the model is limited to fewer steps than the router has, the last logit is
            that of all steps from there on.
        """
        logits = halting.in_float32(self.router, token_hidden)
        return halting.folded_router_logits(logits, self.config.num_latent_thoughts)

    def _log_weight(self, slots: Tensor, num_thoughts: int, context: PassContext) -> Tensor:
        """Return the mask of the next pass, from slot 0 of this one."""
        logits = self.decided(self.route(slots[:, 0]), context)
        mass = halting.tail_mass(halting.step_distribution(logits))
        mass = merge_slots(mass[:, 1 : num_thoughts + 1])
        if context.prune:
            return halting.hard_log_tail_mass(mass, self.config.pruning_threshold)
        return halting.log_tail_mass(mass)

    def read(self, ended: PassRows, context: PassContext) -> Readout:
        """Read the expectation over steps, by slot 0 of the final pass."""
        slots = split_slots(ended.rows, self.config.num_slots)
        logits = self.decided(self.route(slots[:, 0]), context)
        distribution = halting.step_distribution(logits)
        mass = halting.tail_mass(distribution)
        weights = self._weights(distribution, mass, context)
        mixed = halting.mix_steps(slots, weights)
        one_step_more = None
        if context.measures_steps:
            one_step_more = halting.mix_steps(slots, halting.one_step_more(weights))

        # From here on every rank works on all tokens.
        mass, distribution = context.axis.to_full_use(mass), context.axis.to_full_use(distribution)
        penalty = halting_penalty(mass, context.real, self.config.penalty, context.bottom_k_fraction)
        steps = halting.steps_taken(mass, self.config.pruning_threshold)
        self._record(steps, mass, distribution, penalty, context)
        context.observe("router_logits", logits)
        context.observe("s", distribution)
        context.observe("tail_mass", mass)
        context.observe("mixed_hidden", mixed)
        return Readout(
            hidden=mixed,
            penalty=penalty,
            steps=steps,
            # [S, K, B] -> [S, B, K]
            step_scores=mass[:, 1:].transpose(1, 2),
            of_steps=slots if context.measures_steps or self._supervises_steps else None,
            one_step_more=one_step_more,
            regularizer=self._regularizer(distribution, context),
        )

    def _weights(self, distribution: Tensor, mass: Tensor, context: PassContext) -> Tensor:
        """Return the weights of the steps in what is read, [S, K + 1, B]."""
        threshold = self.config.pruning_threshold
        if self.config.reading is Reading.LAST_STEP:
            return halting.last_step_weights(mass, threshold if context.prune else 0.0)
        if self.config.reading is Reading.DETACHED_MIXTURE:
            distribution = distribution.detach()
        return torch.where(mass >= threshold, distribution, 0.0) if context.prune else distribution

    @property
    def _supervises_steps(self) -> bool:
        return self.config.step_loss_weight > 0 and torch.is_grad_enabled()

    def _regularizer(self, distribution: Tensor, context: PassContext) -> Tensor | None:
        if self.config.entropy_floor == 0:
            return None
        gap = entropy_gap(distribution, context.real, self.config.entropy_floor)
        return self.config.entropy_floor_weight * gap

    def _decide(self, token_hidden: Tensor, observe: Observer) -> SlotDecision:
        return slots_above(
            self.route(token_hidden),
            self.config.pruning_threshold,
            observe,
            reads_last=self.config.reading is Reading.LAST_STEP,
        )

    def statistics_layout(self) -> dict[str, int]:
        """Return the sums over real tokens, in addition to the residuals."""
        slots = self.config.num_slots
        own = {"steps_count": slots, "tail_mass": slots, "router_entropy": 1, "penalty": 1}
        return super().statistics_layout() | own

    @torch.no_grad()
    def _record(
        self, steps: Tensor, mass: Tensor, distribution: Tensor, penalty: Tensor, context: PassContext
    ) -> None:
        real = context.real
        taken = nn.functional.one_hot(steps, self.config.num_slots)
        context.statistics |= {
            # [S, B, K + 1] -> [K + 1]
            "steps_count": (taken * real.unsqueeze(-1)).sum(dim=(0, 1)).to(mass.dtype),
            # [S, K + 1, B] -> [K + 1]
            "tail_mass": (mass * real.unsqueeze(1)).sum(dim=(0, 2)),
            "router_entropy": (halting.step_entropy(distribution) * real).sum().reshape(1),
            "penalty": (penalty * real.sum()).reshape(1),
        }
