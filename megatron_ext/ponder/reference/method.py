"""The base of the oracle's methods: run rows of a token, keep them, feed results back.

H = hidden size, V = vocabulary.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_ext.ponder.config import Method, Mixture, PonderConfig, RouterKind
from megatron_ext.ponder.reference.backbone import Backbone, KeptRow


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenResult:
    """The result of consuming one token.

    Attributes:
        logits: [V], predicting the next token.
        rows: rows that ran through the layers for it.
        thoughts: [K_hat, H], inputs of slots 1..K_hat; empty for the methods without latent thoughts.
        gate_logits: one number per evaluated gate, including the one that halted; empty without gates.
        step_logits: [K_hat + 1, V], from reading each step alone; empty without a router.
        shares: [K + 1], s; empty without a router.
    """

    logits: Tensor
    rows: int
    thoughts: Tensor
    gate_logits: Tensor
    step_logits: Tensor
    shares: Tensor

    @property
    def steps(self) -> int:
        """K_hat, the active iterations, or the K that always run: one row each, after the first."""
        return self.rows - 1


class OracleMethod(ABC):
    """A document so far, and the rule by which a method thinks about its next token."""

    def __init__(
        self,
        backbone: Backbone,
        ponder: PonderConfig,
        *,
        pondering_share: float = 1.0,
        holds_decisions: bool = False,
    ) -> None:
        """Start with an empty document.

        Args:
            backbone: the layers.
            ponder: the method's settings.
            pondering_share: a of a blended start (definitions 2.9).
            holds_decisions: no gradient reaches the router or the gates.
        """
        self.backbone = replace(backbone, scale_extra=ponder.form.attention_scale_extra)
        self.ponder = ponder
        self.pondering_share = pondering_share
        self.holds_decisions = holds_decisions
        self.scale = embedding_scale(ponder, backbone.embeddings.shape[1])
        self.position = 0
        # The rows of every token so far; the last list grows while its token is being thought about.
        self.tokens: list[list[KeptRow]] = []

    def consume(self, token: int, position: int) -> TokenResult:
        """Think about one token.

        Args:
            token: id.
            position: rotary position of all its rows.
        """
        self.position = position
        self.tokens.append([])
        return self.think(token)

    @abstractmethod
    def think(self, token: int) -> TokenResult:
        """Apply the method's rule to the last token."""

    @abstractmethod
    def visible_rows(self) -> Sequence[KeptRow]:
        """Return the rows that the next row of the last token attends to, apart from itself."""

    def embed(self, token: int) -> Tensor:
        """Return c * Emb[x], [H]."""
        return self.scale * self.backbone.embeddings[token]

    def run_layers(self, row: Tensor, *, log_weight: Tensor | None = None) -> Tensor:
        """Run the next row of the token, [H] -> [H], without the final norm; it stays for later rows.

        Args:
            row: what enters the layers.
            log_weight: of the row's column; None for 0.
        """
        weight = row.new_zeros(()) if log_weight is None else log_weight
        row, kept = self.backbone.run_layers(row, self.position, self.visible_rows(), log_weight=weight)
        self.tokens[-1].append(kept)
        return row

    def run(self, row: Tensor, *, log_weight: Tensor | None = None) -> Tensor:
        """F: run the next row of the token through the layers and the final norm, [H] -> [H]."""
        return self.backbone.final_norm(self.run_layers(row, log_weight=log_weight))

    def run_thought(self, row: Tensor, *, log_weight: Tensor | None = None) -> Tensor:
        """F for a slot after the first: in a blended start its key weighs less."""
        weight = row.new_zeros(()) if log_weight is None else log_weight
        return self.run(row, log_weight=weight - 6 * (1 - self.pondering_share))

    def decide(self, hidden: Tensor, name: str, *, num_layers: int = 2) -> Tensor:
        """Return the logits of the router or a gate."""
        is_linear = num_layers == 1 or self.ponder.form.router is RouterKind.LINEAR
        network = self.backbone.linear if is_linear else self.backbone.two_layers
        logits = network(hidden, name)
        return logits.detach() if self.holds_decisions else logits

    def feed_back(self, hidden: Tensor) -> Tensor:
        """Return what a step hands on, [H] -> [H]: its hidden state, or the embeddings that it predicts."""
        if self.ponder.mixture is Mixture.HIDDEN:
            return hidden
        logits = self.backbone.head @ hidden / self.ponder.softmax_temperature
        num_mixed = len(logits) if self.ponder.mixture is Mixture.SOFTMAX else self.ponder.mixture_top_k
        # The set of the largest logits counts, not their order.
        likely = logits.argsort(descending=True)[:num_mixed]
        return torch.softmax(logits[likely], dim=0) @ (self.scale * self.backbone.embeddings[likely])

    def result(
        self,
        hidden: Tensor,
        *,
        first: Tensor,
        thoughts: Sequence[Tensor] = (),
        gate_logits: Sequence[Tensor] = (),
        steps: Sequence[Tensor] = (),
        shares: Tensor | None = None,
    ) -> TokenResult:
        """Read the logits from a hidden state, in a blended start also from that of step 0.

        Args:
            hidden: [H].
            first: [H], h^0.
            thoughts: [H] each.
            gate_logits: [1] each.
            steps: [H] each, the steps that a router weighs.
            shares: [K + 1], s.
        """
        return TokenResult(
            logits=self.backbone.head @ ((1 - self.pondering_share) * first + self.pondering_share * hidden),
            rows=len(self.tokens[-1]),
            thoughts=torch.stack(list(thoughts)) if thoughts else hidden.new_zeros(0, len(hidden)),
            gate_logits=torch.cat(list(gate_logits)) if gate_logits else hidden.new_zeros(0),
            step_logits=torch.stack([self.backbone.head @ step for step in steps])
            if steps
            else hidden.new_zeros(0, len(self.backbone.head)),
            shares=hidden.new_zeros(0) if shares is None else shares,
        )


def embedding_scale(ponder: PonderConfig, hidden_size: int) -> float:
    """Return c, the factor on all embeddings: 1, sqrt(H) or sqrt(2.5 H) (definitions 2.2, 3.1 and 4)."""
    if ponder.method is Method.VANILLA or not ponder.scale_embeds:
        return 1.0
    has_thoughts = ponder.method in (Method.PONDERLM2, Method.PONDERLM3)
    is_wide = ponder.method in (Method.LOOP, Method.ADAPTIVE_LATENT_COT) or (
        has_thoughts and ponder.mixture is Mixture.HIDDEN
    )
    return math.sqrt(2.5 * hidden_size if is_wide else hidden_size)
