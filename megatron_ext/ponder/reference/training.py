"""The training forward of PonderLM-3 on one document, pass by pass and row by row (definitions 2.3 to 2.8).

In autograd's hands, so that gradients can be compared too. The pre-pass of the authors' form is run as it is
defined, a pass of its own.

K = latent thoughts, J = sweeps, H = hidden size, V = vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.ponder.config import Penalty, PonderConfig, ReadoutFrom, TrainingMask
from megatron_ext.ponder.reference.backbone import Backbone, KeptRow
from megatron_ext.ponder.reference.slots import PonderLM3, is_pruned, log_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """The result of a training forward.

    Attributes:
        logits: of every token, [V] each.
        shares: s of the readout, [K + 1] each.
        penalty: scalar.
        num_passes: as often the layers were run.
    """

    logits: list[Tensor]
    shares: list[Tensor]
    penalty: Tensor
    num_passes: int


class TrainingForward:
    """Runs the passes of training over one document."""

    def __init__(self, backbone: Backbone, ponder: PonderConfig) -> None:
        """Start.

        Args:
            backbone: the layers, with the router among its weights.
            ponder: settings of PonderLM-3.
        """
        self._rules = PonderLM3(backbone, ponder)
        self._backbone, self._ponder, self._form = self._rules.backbone, ponder, ponder.form
        self._num_passes = 0
        self._num_constant = 0

    def run(
        self,
        tokens: Sequence[int],
        labels: Sequence[int | None],
        *,
        num_sweeps: int,
        gradient_passes: int | None = None,
    ) -> TrainingResult:
        """Run all passes.

        Args:
            tokens: ids.
            labels: the next token of each; None where none is to be predicted.
            num_sweeps: J.
            gradient_passes: what all passes but so many last ones hand on is constant; None: nothing is.
        """
        form, num_thoughts = self._form, self._ponder.num_latent_thoughts
        if gradient_passes is not None:
            self._num_constant = form.pre_pass + num_thoughts + num_sweeps + 1 - gradient_passes
        embeddings = [self._rules.embed(token) for token in tokens]
        slots = [[embedding] for embedding in embeddings]
        shares: list[Tensor] | None = None
        if form.pre_pass:
            shares = self._route(self._pass(slots, None))
        for _ in range(num_thoughts):
            hidden = self._pass(slots, shares)
            slots = self._refreshed(embeddings, hidden)
            if not form.pre_pass:
                shares = self._route(hidden)
        for sweep in range(1, num_sweeps + 1) if num_thoughts > 0 else ():
            hidden = self._pass(slots, shares)
            slots = self._refreshed(embeddings, [of_token[:-1] for of_token in hidden])
            assert shares is not None, "the build-up has decided"
            is_damped = sweep <= num_sweeps - form.undamped_sweeps
            newest = form.router_damping if is_damped else 1.0
            shares = [
                (1 - newest) * old + newest * new
                for old, new in zip(shares, self._route(hidden), strict=True)
            ]
        hidden = self._pass(slots, shares)
        if shares is None or form.readout_from is ReadoutFrom.FINAL:
            shares = self._route(hidden)
        return TrainingResult(
            logits=[self._logits(*token) for token in zip(hidden, shares, strict=True)],
            shares=shares,
            penalty=self._penalty(hidden, shares, labels),
            num_passes=self._num_passes,
        )

    def _refreshed(self, embeddings: list[Tensor], hidden: list[list[Tensor]]) -> list[list[Tensor]]:
        return [
            [embedding, *(self._handed(self._rules.feed_back(row)) for row in of_token)]
            for embedding, of_token in zip(embeddings, hidden, strict=True)
        ]

    def _route(self, hidden: list[list[Tensor]]) -> list[Tensor]:
        logits = [self._rules.decide(of_token[0], "ponder.router") for of_token in hidden]
        return [self._handed(torch.softmax(of_token, dim=0)) for of_token in logits]

    def _handed(self, value: Tensor) -> Tensor:
        """Return a value as the last pass that ran hands it on."""
        return value.detach() if self._num_passes <= self._num_constant else value

    def _pass(self, slots: list[list[Tensor]], shares: list[Tensor] | None) -> list[list[Tensor]]:
        """Run the rows of all tokens, in order, and return them after the final norm."""
        self._num_passes += 1
        kept: list[KeptRow] = []
        hidden: list[list[Tensor]] = []
        for token, inputs in enumerate(slots):
            hidden.append([])
            for slot, row in enumerate(inputs):
                weight = row.new_zeros(())
                if slot > 0 and shares is not None:
                    weight = self._weight(shares[token][slot:].sum())
                row, left = self._backbone.run_layers(row, token, kept, log_weight=weight)
                kept.append(left)
                hidden[-1].append(self._backbone.final_norm(row))
        return hidden

    def _weight(self, tail_mass: Tensor) -> Tensor:
        hides = self._form.mask_in_training is TrainingMask.HARD
        if hides and is_pruned(tail_mass, self._ponder):
            return torch.full_like(tail_mass, -math.inf)
        return log_weight(tail_mass, self._ponder)

    def _logits(self, hidden: list[Tensor], shares: Tensor, *, steps: int | None = None) -> Tensor:
        """Read a token from its first slots, those of at most so many steps."""
        num_slots = len(hidden) if steps is None else steps + 1
        mixed = sum(shares[slot] * hidden[slot] for slot in range(num_slots))
        return self._backbone.head @ mixed

    def _penalty(
        self, hidden: list[list[Tensor]], shares: list[Tensor], labels: Sequence[int | None]
    ) -> Tensor:
        num_thoughts = self._ponder.num_latent_thoughts
        # By step, then token.
        masses = [[s[step:].sum() for s in shares] for step in range(1, num_thoughts + 1)]
        if self._ponder.penalty is Penalty.EXPECTED_STEPS:
            return torch.stack([torch.stack(of_step).mean() for of_step in masses]).mean()
        if self._ponder.penalty is Penalty.BOTTOM_K:
            logs = [mass.clamp_min(1e-9).log() for of_step in masses for mass in of_step]
            return _mean_of_smallest(logs, self._ponder.bottom_k_fraction * len(logs))
        levels = self._levels(hidden, shares, labels)
        differences = [after - before for before, after in zip([0.0, *levels], levels, strict=False)]
        parts = [
            _mean_of_smallest(of_step, max(difference, 0.0) * len(shares))
            for of_step, difference in zip(masses, differences, strict=True)
        ]
        return torch.stack(parts).sum()

    def _levels(
        self, hidden: list[list[Tensor]], shares: list[Tensor], labels: Sequence[int | None]
    ) -> list[float]:
        """Return b_1..b_K."""
        kind, levels = self._ponder.penalty, []
        for step in range(1, self._ponder.num_latent_thoughts + 1):
            values = []
            for of_token, s, label in zip(hidden, shares, labels, strict=True):
                if label is None:
                    continue
                before, after = (
                    torch.log_softmax(self._logits(of_token, s, steps=steps), dim=0).detach()
                    for steps in (step - 1, step)
                )
                if kind is Penalty.ACCURACY_BOTTOM:
                    values.append(float(before[label].exp()) if int(before.argmax()) == label else 0.0)
                elif kind is Penalty.DELTA_LOSS:
                    values.append(_sigmoid(50 * min(float(before[label] - after[label]), 0.0)))
                else:
                    values.append(1 - _sigmoid(10 * (-float(after[label]) - 0.5)))
            levels.append(sum(values) / len(values))
        return levels


def _mean_of_smallest(values: list[Tensor], count: float) -> Tensor:
    ordered = sorted(values, key=lambda value: float(value.detach()))
    return torch.stack(ordered[: max(1, math.floor(count))]).mean()


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
