"""Halting of latent thoughts without training: by the prediction of step 0, or when thoughts stop moving.

N = tokens of a call, K = latent thoughts, H = hidden size, V = vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.ponder.step_limits import HaltingSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalHalting:
    """Takes a further step while the signal is at least the threshold; implements `think.StepHalting`.

    Attributes:
        signal: which.
        threshold: in the unit of the signal; minus infinity takes all steps.
        of_prediction: slot 0 after the final norm, [N, H], to what :func:`prediction_signal` returns.
    """

    signal: HaltingSignal
    threshold: float
    of_prediction: Callable[[Tensor], Tensor]

    def score(self, hidden: Tensor, step: int) -> Tensor:
        """Return what decides on a step, once the slots before it have run.

        Args:
            hidden: after the final norm, [N, K + 1, H].
            step: 1..K.
        Returns:
            [N]; infinite where an earlier step has decided.
        """
        wide = torch.promote_types(hidden.dtype, torch.float32)
        if self.signal.reads_head:
            if step == 1:
                return self.of_prediction(hidden[:, 0])
        elif step > 1:
            old, new = hidden[:, step - 2].to(wide), hidden[:, step - 1].to(wide)
            change: Tensor = (new - old).norm(dim=1) / old.norm(dim=1).clamp_min(1e-30)
            return change
        return hidden.new_full((len(hidden),), float("inf"), dtype=wide)

    @torch.inference_mode()
    def scores(self, hidden: Tensor) -> Tensor:
        """Return what all steps are taken by, non-increasing: [N, K + 1, H] -> [N, K]."""
        of_steps = [self.score(hidden, step) for step in range(1, hidden.shape[1])]
        if not of_steps:
            return hidden.new_zeros(len(hidden), 0)
        return torch.stack(of_steps, dim=1).cummin(dim=1).values

    def ends_before(self, step: int, hidden: Tensor) -> Tensor:
        """See :class:`megatron_ext.ponder.decode.think.StepHalting`."""
        return self.score(hidden, step) < self.threshold


def prediction_signal(logits: Tensor, signal: HaltingSignal) -> Tensor:
    """Return the entropy in nats, or one minus the largest probability: [N, V] -> [N]."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if signal is HaltingSignal.CONFIDENCE:
        return 1 - torch.softmax(wide, dim=-1).amax(dim=-1)
    log_probability = torch.log_softmax(wide, dim=-1)
    entropy: Tensor = -(log_probability.exp() * log_probability).sum(dim=-1)
    return entropy
