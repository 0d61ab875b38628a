"""Methods whose tokens own slots, one row each: vanilla, pause, PonderLM-2, PonderLM-3 (definitions 2 and 4).

The next row sees all slots of all earlier tokens, and the slots of its own token so far.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_ext.ponder.config import PonderConfig, Reading, TrainingMask
from megatron_ext.ponder.reference.backbone import KeptRow
from megatron_ext.ponder.reference.method import OracleMethod, TokenResult

# log w is clamped here (definitions 2.5, 2.8).
SMALLEST_TAIL_MASS = 1e-9
SMALLEST_KEPT_MASS = 1e-12


class SlotMethod(OracleMethod):
    """A method whose tokens own slots."""

    def visible_rows(self) -> Sequence[KeptRow]:
        return [row for slots in self.tokens for row in slots]


class Vanilla(SlotMethod):
    """One slot, without embedding scale."""

    def think(self, token: int) -> TokenResult:
        """Run the embedding."""
        hidden = self.run(self.embed(token))
        return self.result(hidden, first=hidden)


class Pause(SlotMethod):
    """K pause tokens after every token; the last one is read."""

    def think(self, token: int) -> TokenResult:
        """Run the token, then its pause tokens."""
        pause = self.ponder.pause_token_id
        hidden = first = self.run(self.embed(token))
        for _ in range(self.ponder.num_latent_thoughts):
            assert pause is not None, "pause_token_id must name the embedding of a pause token, but is None"
            hidden = self.run_thought(self.embed(pause))
        return self.result(hidden, first=first)


class PonderLM2(SlotMethod):
    """K latent thoughts, each made from the slot before it; the last slot is read."""

    def think(self, token: int) -> TokenResult:
        """Run the embedding, then thought after thought."""
        thoughts = []
        hidden = first = self.run(self.embed(token))
        for _ in range(self.ponder.num_latent_thoughts):
            thoughts.append(self.feed_back(hidden))
            hidden = self.run_thought(thoughts[-1])
        return self.result(hidden, first=first, thoughts=thoughts)


class PonderLM3(SlotMethod):
    """As PonderLM-2 until the tail mass falls below tau; the slots are read by the router's shares."""

    def think(self, token: int) -> TokenResult:
        """Run the embedding, ask the router, run the thoughts that are kept."""
        thoughts = []
        hidden = [self.run(self.embed(token))]
        shares = torch.softmax(self.decide(hidden[0], "ponder.router"), dim=0)
        for step in range(1, self.ponder.num_latent_thoughts + 1):
            tail_mass = shares[step:].sum()
            if is_pruned(tail_mass, self.ponder):
                break
            thoughts.append(self.feed_back(hidden[-1]))
            weight = log_weight(tail_mass, self.ponder)
            hidden.append(self.run_thought(thoughts[-1], log_weight=weight))
        return self.result(
            self.read(hidden, shares), first=hidden[0], thoughts=thoughts, steps=hidden, shares=shares
        )

    def read(self, hidden: Sequence[Tensor], shares: Tensor) -> Tensor:
        """Read the mixture of the steps that ran, or the last of them."""
        if self.ponder.reading is Reading.LAST_STEP:
            return hidden[-1]
        if self.ponder.reading is Reading.DETACHED_MIXTURE:
            shares = shares.detach()
        return shares[: len(hidden)] @ torch.stack(list(hidden))


def is_pruned(tail_mass: Tensor, ponder: PonderConfig) -> bool:
    """Whether a slot with this tail mass is pruned; at tau it is where training hides keys."""
    tau = ponder.pruning_threshold
    return bool(tail_mass <= tau if ponder.form.mask_in_training is TrainingMask.HARD else tail_mass < tau)


def log_weight(tail_mass: Tensor, ponder: PonderConfig) -> Tensor:
    """Return what is added to the attention logits of a slot's key, where it is not hidden."""
    is_hard = ponder.form.mask_in_training is TrainingMask.HARD
    return tail_mass.clamp_min(SMALLEST_KEPT_MASS if is_hard else SMALLEST_TAIL_MASS).log()
