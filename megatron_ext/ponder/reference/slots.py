"""Methods whose tokens own slots, one row each: vanilla, pause, PonderLM-2, PonderLM-3 (definitions 2 and 4).

The next row sees all slots of all earlier tokens, and the slots of its own token so far.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_ext.ponder.config import PonderConfig, RouterKind, TrainingMask
from megatron_ext.ponder.reference.backbone import Backbone, KeptRow
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
        return self.result(self.run(self.embed(token)))


class Pause(SlotMethod):
    """K pause tokens after every token; the last one is read."""

    def think(self, token: int) -> TokenResult:
        """Run the token, then its pause tokens."""
        pause = self.ponder.pause_token_id
        hidden = self.run(self.embed(token))
        for _ in range(self.ponder.num_latent_thoughts):
            assert pause is not None, "pause_token_id must name the embedding of a pause token, but is None"
            hidden = self.run(self.embed(pause))
        return self.result(hidden)


class PonderLM2(SlotMethod):
    """K latent thoughts, each made from the slot before it; the last slot is read."""

    def think(self, token: int) -> TokenResult:
        """Run the embedding, then thought after thought."""
        thoughts = []
        hidden = self.run(self.embed(token))
        for _ in range(self.ponder.num_latent_thoughts):
            thoughts.append(self.feed_back(hidden))
            hidden = self.run(thoughts[-1])
        return self.result(hidden, thoughts=thoughts)


class PonderLM3(SlotMethod):
    """As PonderLM-2 until the tail mass falls below tau; the slots are read by the router's shares."""

    def think(self, token: int) -> TokenResult:
        """Run the embedding, ask the router, run the thoughts that are kept."""
        thoughts = []
        hidden = [self.run(self.embed(token))]
        shares = router_shares(self.backbone, self.ponder, hidden[0])
        for step in range(1, self.ponder.num_latent_thoughts + 1):
            tail_mass = shares[step:].sum()
            if is_pruned(tail_mass, self.ponder):
                break
            thoughts.append(self.feed_back(hidden[-1]))
            hidden.append(self.run(thoughts[-1], log_weight=log_weight(tail_mass, self.ponder)))
        return self.result(shares[: len(hidden)] @ torch.stack(hidden), thoughts=thoughts)


def router_shares(backbone: Backbone, ponder: PonderConfig, hidden: Tensor) -> Tensor:
    """Return the distribution of a token over its steps, from its slot 0: [H] -> [K + 1]."""
    network = backbone.one_layer if ponder.form.router is RouterKind.LINEAR else backbone.two_layers
    return torch.softmax(network(hidden, "ponder.router"), dim=0)


def is_pruned(tail_mass: Tensor, ponder: PonderConfig) -> bool:
    """Whether a slot with this tail mass is pruned; at tau it is where training hides keys."""
    tau = ponder.pruning_threshold
    return bool(tail_mass <= tau if ponder.form.mask_in_training is TrainingMask.HARD else tail_mass < tau)


def log_weight(tail_mass: Tensor, ponder: PonderConfig) -> Tensor:
    """Return what is added to the attention logits of a slot's key, where it is not hidden."""
    is_hard = ponder.form.mask_in_training is TrainingMask.HARD
    return tail_mass.clamp_min(SMALLEST_KEPT_MASS if is_hard else SMALLEST_TAIL_MASS).log()
