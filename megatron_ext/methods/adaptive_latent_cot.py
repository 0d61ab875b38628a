"""Adaptive Latent CoT: hidden states are fed back, step by step, until a router stops (definitions 3.3)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from megatron_ext.methods.base import (
    Mixer,
    PassContext,
    PassRows,
    PonderMethod,
    Readout,
    build_decider,
)
from megatron_ext.ponder.config import PonderConfig
from megatron_ext.ponder.decode.think import Observer, Thinking, ignore, think_until_stopped
from megatron_ext.ponder.halting import exit_masses, in_float32, mix_exits, reaches
from megatron_ext.ponder.penalties import confident_continuation

# At first every token continues with 0.9: most of what is read is of the last step, and all steps count.
CONTINUE_ODDS = 9.0


class AdaptiveLatentCoT(PonderMethod):
    """Step k attends to all steps up to k of all tokens up to its own; each row is computed once.

    A token that stops has no later steps: their rows run in training all the same, but nothing sees them.
    """

    def __init__(self, config: PonderConfig, hidden_size: int, *, decides: bool = True) -> None:
        """Build the router, Linear(H, 1)."""
        super().__init__(config, hidden_size, decides=decides)
        if decides:
            self.router = build_decider(config, hidden_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize with 0.9 for continuing, whatever the token."""
        if not self.decides:
            return
        assert isinstance(self.router, nn.Linear)
        nn.init.zeros_(self.router.weight)
        nn.init.constant_(self.router.bias, math.log(CONTINUE_ODDS))

    def enter(
        self, index: int, embed: Callable[[], Tensor], handed: PassRows | None, context: PassContext
    ) -> PassRows:
        """Enter the embeddings, then what the step before has handed on."""
        del index, context
        return PassRows(rows=embed()) if handed is None else handed

    def leave(self, index: int, ended: PassRows, context: PassContext) -> PassRows:
        """Hand on the hidden state, with 1 in the column where the token runs the next step."""
        hidden = context.memory.keep(f"hidden/{index}", ended.rows)
        context.observe(f"hidden/step_{index:02d}", hidden)
        logits = self.decided(self._router_logits(hidden), context)
        hidden = context.memory.keep_aside(f"continue/{index}", logits, hidden)
        with torch.no_grad():
            before = torch.ones_like(logits) if index == 0 else context.memory.recall(f"reach/{index}")
            reach = reaches(before, logits)
            context.memory.note(f"reach/{index + 1}", reach)
            correctness = torch.exp(-context.score_labels(hidden).nll)
            context.memory.note(f"correctness/{index}", correctness)
        active = reach >= self.config.pruning_threshold
        return PassRows(rows=self._next_input(hidden), column=active.to(logits.dtype))

    def read(self, ended: PassRows, context: PassContext) -> Readout:
        """Read the expectation over the steps at which a token leaves."""
        num_steps = self.config.num_latent_thoughts
        if num_steps == 0:
            return Readout(hidden=ended.rows)
        recall = context.memory.recall
        logits = torch.stack([recall(f"continue/{step}") for step in range(num_steps)], dim=-1)
        masses, _ = exit_masses(logits, self.config.pruning_threshold)
        hidden = [*(recall(f"hidden/{step}") for step in range(num_steps)), ended.rows]
        context.observe(f"hidden/step_{num_steps:02d}", ended.rows)
        mixed = mix_exits(hidden, masses)

        # From here on every rank works on all tokens.
        logits, masses = context.axis.to_full_use(logits), context.axis.to_full_use(masses)
        _, steps = exit_masses(logits.detach(), self.config.pruning_threshold)
        correctness = torch.stack([recall(f"correctness/{step}") for step in range(num_steps)], dim=-1)
        penalty = confident_continuation(
            logits,
            correctness,
            steps,
            labelled=context.has_label,
            real=context.real,
            exponent=self.config.penalty_exponent,
        )
        self._record(steps, logits, penalty, context)
        context.observe("continue_logits", logits)
        context.observe("exit_masses", masses)
        context.observe("correctness", correctness)
        context.observe("mixed_hidden", mixed)
        scores = torch.stack([recall(f"reach/{step}") for step in range(1, num_steps + 1)], dim=-1)
        return Readout(
            hidden=mixed, penalty=penalty, steps=steps, step_scores=context.axis.to_full_use(scores)
        )

    def think(self, rows: Tensor, mix_embeddings: Mixer, observe: Observer = ignore) -> Thinking:
        """Run step after step until the router stops the token."""
        del mix_embeddings
        return think_until_stopped(
            rows,
            num_steps=self.config.num_latent_thoughts,
            next_input=self._next_input,
            router=self._router_logits,
            threshold=self.config.pruning_threshold,
            observe=observe,
        )

    def statistics_layout(self) -> dict[str, int]:
        """Sums over real tokens; those of the router over the tokens that ran the step it was asked after."""
        num_steps = self.config.num_latent_thoughts
        if num_steps == 0:
            return {}
        return {"steps_count": num_steps + 1, "continue_probability": num_steps, "penalty": 1}

    def _router_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of continuing, in at least float32: [S, B, H] -> [S, B]."""
        return in_float32(self.router, hidden).squeeze(-1)

    def _next_input(self, hidden: Tensor) -> Tensor:
        scale = self.config.step_input_scale
        return hidden if scale == 1 else hidden * scale

    @torch.no_grad()
    def _record(self, steps: Tensor, logits: Tensor, penalty: Tensor, context: PassContext) -> None:
        real = context.real.unsqueeze(-1)
        taken = nn.functional.one_hot(steps, self.config.num_slots)
        asked = real & (torch.arange(logits.shape[-1], device=steps.device) <= steps.unsqueeze(-1))
        context.statistics |= {
            # [S, B, K + 1] -> [K + 1]
            "steps_count": (taken * real).sum(dim=(0, 1)).to(logits.dtype),
            # [S, B, K] -> [K]
            "continue_probability": torch.where(asked, torch.sigmoid(logits), 0.0).sum(dim=(0, 1)),
            "penalty": (penalty * context.real.sum()).reshape(1),
        }
