"""PonderLM-3: latent thoughts, of which each token takes as many as it needs (definitions 2.5, 2.8)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

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
from megatron_ext.ponder.config import PonderConfig, Reading, RouterStart
from megatron_ext.ponder.decode.think import Observer, SlotDecision, slots_above
from megatron_ext.ponder.penalties import (
    LabelScores,
    accuracies,
    entropy_gap,
    halting_penalty,
    penalised_shares,
    penalty_levels,
    smallest_masses,
)
from megatron_ext.ponder.slots import merge_slots, slots_up_to, split_slots

# The router starts with 0.9 of the probability on the last step: close to PonderLM-2 (definitions 2.7).
LAST_STEP_ODDS = 9.0


class PonderLM3(PonderLM2):
    """A router on slot 0 weighs the steps in training, and prunes them at inference."""

    def __init__(self, config: PonderConfig, hidden_size: int, *, decides: bool = True) -> None:
        """Build the router: Linear(H, H/4), exact GELU, Linear(H/4, K + 1), or Linear(H, K + 1)."""
        super().__init__(config, hidden_size, decides=decides)
        if decides:
            self.router = build_decider(config, hidden_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize with 0.9 on step K, whatever the token, or with about equal shares."""
        if not self.decides:
            return
        output = self.router if isinstance(self.router, nn.Linear) else self.router[2]
        assert isinstance(output, nn.Linear)
        nn.init.zeros_(output.bias)
        if self.config.form.router_start is RouterStart.RANDOM:
            std = math.sqrt(2 / (5 * output.in_features))
            nn.init.trunc_normal_(output.weight, std=std, a=-3 * std, b=3 * std)
            return
        nn.init.zeros_(output.weight)
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

    def _log_weight(self, index: int, slots: Tensor, num_thoughts: int, context: PassContext) -> Tensor:
        """Return the mask of the next pass, from slot 0 of this one and of those before."""
        whole_mass = halting.tail_mass(self._distribution(index, slots[:, 0], context))
        mass = merge_slots(whole_mass[:, 1 : num_thoughts + 1])
        threshold, hides_keys = self.config.pruning_threshold, self.config.form.hides_keys
        if context.skips_pruned_rows:
            context.last_slot = self._last_slots(whole_mass, num_thoughts, context)
            runs = merge_slots(slots_up_to(context.last_slot, num_thoughts + 1)[:, 1:])
            return torch.where(runs, halting.log_tail_mass(mass), halting.PRUNED_LOG_MASS)
        if context.prune and not hides_keys:
            return halting.hard_log_tail_mass(mass, threshold)
        return halting.log_key_mass(mass, threshold, hides_keys=hides_keys)

    @torch.no_grad()
    def _last_slots(self, mass: Tensor, num_thoughts: int, context: PassContext) -> Tensor:
        """Return the last slot of each token that runs in the next pass, [S, B], as prompts are read.

        A slot that comes back grows from the slot before it, one slot a pass, as in the build-up. All ranks
        of the tensor axis run the same rows: those of the largest of their decisions, which are equal but
        for rounding.

        Args:
            mass: w, [S, K + 1, B].
            num_thoughts: that the next pass can have.
            context: the micro-batch.
        """
        steps = halting.steps_taken(
            mass, self.config.pruning_threshold, hides_keys=self.config.form.hides_keys
        )
        before = torch.zeros_like(steps) if context.last_slot is None else context.last_slot
        last = torch.minimum(steps, before + 1).clamp_max(num_thoughts)
        return context.axis.max_over_ranks(torch.where(context.real, last, 0))

    def _distribution(self, index: int, token_hidden: Tensor, context: PassContext) -> Tensor:
        """Return s after a pass, by its slot 0 and the s before: [S, B, H] -> [S, K + 1, B]."""
        share = self._share(index, context)
        if share == 0.0:
            distribution = context.memory.recall(f"distribution/{index - 1}")
        else:
            logits = self.decided(self.route(token_hidden), context)
            context.observe("router_logits", logits)
            distribution = halting.step_distribution(logits)
            if share < 1.0:
                before = context.memory.recall(f"distribution/{index - 1}")
                distribution = torch.lerp(before, distribution, share)
        if context.plan.is_final(index) or self._share(index + 1, context) == 1.0:
            return distribution
        return context.memory.keep(f"distribution/{index}", distribution)

    def _share(self, index: int, context: PassContext) -> float:
        """Return the share of what the router says after a pass in the distribution that counts then."""
        renewal = self.config.form.renewal
        if not context.damped:
            renewal = replace(renewal, damping=1.0)
        return renewal.share(
            index, num_thoughts=self.config.num_latent_thoughts, num_sweeps=context.plan.num_sweeps
        )

    def read(self, ended: PassRows, context: PassContext) -> Readout:
        """Read the expectation over steps."""
        slots = split_slots(ended.rows, self.config.num_slots)
        distribution = self._distribution(context.plan.num_passes - 1, slots[:, 0], context)
        mass = halting.tail_mass(distribution)
        # With the rows of pruned slots left out every rank has all tokens.
        steps = self._steps_read(mass, context) if context.skips_pruned_rows else None
        weights = self._weights(distribution, mass, steps, context)
        mixed = halting.mix_steps(slots, weights)
        one_step_more = None
        if context.measures_steps:
            one_step_more = halting.mix_steps(slots, halting.one_step_more(weights))
        scores = self._scores_of_fewer_steps(slots, weights, context) if self._has_adaptive_penalty else []

        # From here on every rank works on all tokens.
        mass, distribution = context.axis.to_full_use(mass), context.axis.to_full_use(distribution)
        steps = self._steps_read(mass, context) if steps is None else steps
        self._record(steps, mass, distribution, context)
        context.observe("s", distribution)
        context.observe("tail_mass", mass)
        context.observe("mixed_hidden", mixed)
        penalty, penalty_of = None, None
        if self._has_adaptive_penalty:
            penalty_of = partial(self._adaptive_penalty, mass, scores, context)
        else:
            penalty = halting_penalty(
                mass,
                context.real,
                self.config.penalty,
                context.bottom_k_fraction,
                real_rows=context.real_rows,
            )
            self._record_penalty(penalty, context)
        return Readout(
            hidden=mixed,
            penalty=penalty,
            penalty_of=penalty_of,
            steps=steps,
            # [S, K, B] -> [S, B, K]
            step_scores=mass[:, 1:].transpose(1, 2),
            of_steps=slots if context.measures_steps or self._supervises_steps else None,
            one_step_more=one_step_more,
            regularizer=self._regularizer(distribution, context),
        )

    def _steps_read(self, mass: Tensor, context: PassContext) -> Tensor:
        """Return the steps that tokens take, [S, B]; at most those that ran, where pruned rows do not."""
        steps = halting.steps_taken(
            mass, self.config.pruning_threshold, hides_keys=self.config.form.hides_keys
        )
        if not context.skips_pruned_rows:
            return steps
        return torch.zeros_like(steps) if context.last_slot is None else steps.minimum(context.last_slot)

    def _weights(
        self, distribution: Tensor, mass: Tensor, steps: Tensor | None, context: PassContext
    ) -> Tensor:
        """Return the weights of the steps in what is read, [S, K + 1, B].

        Args:
            distribution, mass: s and w, [S, K + 1, B].
            steps: those that ran, [S, B]; None where all did.
            context: the micro-batch.
        """
        threshold, hides_keys = self.config.pruning_threshold, self.config.form.hides_keys
        if self.config.reading is Reading.LAST_STEP:
            if not context.prune:
                return halting.last_step_weights(mass, 0.0)
            return halting.last_step_weights(mass, threshold, hides_keys=hides_keys)
        if self.config.reading is Reading.DETACHED_MIXTURE:
            distribution = distribution.detach()
        if steps is not None:
            return torch.where(slots_up_to(steps, mass.shape[1]), distribution, 0.0)
        if not context.prune:
            return distribution
        return torch.where(halting.is_kept(mass, threshold, hides_keys=hides_keys), distribution, 0.0)

    @property
    def _supervises_steps(self) -> bool:
        return self.config.step_loss_weight > 0 and torch.is_grad_enabled()

    def _regularizer(self, distribution: Tensor, context: PassContext) -> Tensor | None:
        if self.config.entropy_floor == 0:
            return None
        gap = entropy_gap(distribution, context.real, self.config.entropy_floor)
        return self.config.entropy_floor_weight * gap

    @property
    def _has_adaptive_penalty(self) -> bool:
        return self.config.penalty.is_adaptive and self.config.num_latent_thoughts > 0

    @torch.no_grad()
    def _scores_of_fewer_steps(
        self, slots: Tensor, weights: Tensor, context: PassContext
    ) -> list[LabelScores]:
        """Score the labels by the first 0..K - 1 steps of the mixture, which is not renormalised.

        Args:
            slots: hidden states, [S, K + 1, B, H].
            weights: of the readout, [S, K + 1, B].
            context: the micro-batch.
        """
        num_slots = range(1, self.config.num_slots)
        return [
            context.score_labels(halting.mix_steps(slots[:, :some], weights[:, :some])) for some in num_slots
        ]

    def _adaptive_penalty(
        self,
        mass: Tensor,
        fewer_steps: Sequence[LabelScores],
        context: PassContext,
        all_steps: LabelScores,
    ) -> Tensor:
        """Push down as large a share of each w_k as can do without step k (definitions 2.8)."""
        scores = [*fewer_steps, all_steps]
        levels = penalty_levels(self.config.penalty, scores, context.has_label)
        shares = penalised_shares(levels)
        penalty = smallest_masses(mass, context.real, shares)
        context.statistics |= {
            "accuracy": accuracies(scores, context.has_label) * context.has_label.sum(),
            "penalised_share": shares * context.real.sum(),
        }
        self._record_penalty(penalty, context)
        return penalty

    def _decide(self, token_hidden: Tensor, observe: Observer) -> SlotDecision:
        return slots_above(
            self.route(token_hidden),
            self.config.pruning_threshold,
            observe,
            hides_keys=self.config.form.hides_keys,
            reads_last=self.config.reading is Reading.LAST_STEP,
        )

    def statistics_layout(self) -> dict[str, int]:
        """Return the sums over real tokens, in addition to the residuals."""
        slots = self.config.num_slots
        own = {"steps_count": slots, "tail_mass": slots, "router_entropy": 1, "penalty": 1}
        if self._has_adaptive_penalty:
            own |= {"accuracy": slots, "penalised_share": slots - 1}
        return super().statistics_layout() | own

    @torch.no_grad()
    def _record(self, steps: Tensor, mass: Tensor, distribution: Tensor, context: PassContext) -> None:
        real = context.real
        taken = nn.functional.one_hot(steps, self.config.num_slots)
        context.statistics |= {
            # [S, B, K + 1] -> [K + 1]
            "steps_count": (taken * real.unsqueeze(-1)).sum(dim=(0, 1)).to(mass.dtype),
            # [S, K + 1, B] -> [K + 1]
            "tail_mass": (mass * real.unsqueeze(1)).sum(dim=(0, 2)),
            "router_entropy": (halting.step_entropy(distribution) * real).sum().reshape(1),
        }

    @torch.no_grad()
    def _record_penalty(self, penalty: Tensor, context: PassContext) -> None:
        context.statistics["penalty"] = (penalty * context.real.sum()).reshape(1)
