"""Methods that run one row again and again (definitions 3 and 4).

A token keeps one version of its keys and values per iteration. Iteration i sees version i of every earlier
token, or the last one of a token that has fewer; in Adaptive Latent CoT it sees all versions up to i.
"""

from collections.abc import Sequence

import torch

from megatron_ext.ponder.config import Residual
from megatron_ext.ponder.reference.backbone import KeptRow
from megatron_ext.ponder.reference.method import OracleMethod, TokenResult


class IterativeMethod(OracleMethod):
    """A method that runs one row again and again."""

    def visible_rows(self) -> Sequence[KeptRow]:
        """One version of every earlier token."""
        *earlier, own = self.tokens
        return [versions[min(len(own), len(versions) - 1)] for versions in earlier]


class Loop(IterativeMethod):
    """The layers run K + 1 times on their own output, without a norm in between."""

    def think(self, token: int) -> TokenResult:
        """Run trip after trip, then the final norm."""
        row = after_one = self.run_layers(self.embed(token))
        for _ in range(self.ponder.num_latent_thoughts):
            row = self.run_layers(row)
        return self.result(self.backbone.final_norm(row), first=self.backbone.final_norm(after_one))


class PonderLM(IterativeMethod):
    """K times, the embeddings that an iteration predicts are added to the input of the next one."""

    def think(self, token: int) -> TokenResult:
        """Run E^0, then E^{i+1} = E^i + e^i, or E^0 + e^i."""
        first = self.embed(token)
        if self.ponder.multiply_embedding:
            first = self.ponder.num_latent_thoughts * first
        row = first
        hidden = first_hidden = self.run(row)
        for _ in range(self.ponder.num_latent_thoughts):
            base = row if self.ponder.residual is Residual.ACCUMULATE else first
            row = base + self.feed_back(hidden)
            hidden = self.run(row)
        return self.result(hidden, first=first_hidden)


class AdaPonderLM(IterativeMethod):
    """As PonderLM, with each addition weighted by a gate; a gate below tau halts the token for good."""

    def think(self, token: int) -> TokenResult:
        """Run E^0, then E^{i+1} = E^i + s^i e^i while s^i >= tau."""
        gate_logits = []
        row = self.embed(token)
        hidden = first = self.run(row)
        for iteration in range(self.ponder.num_latent_thoughts):
            gate_logits.append(self.decide(hidden, f"ponder.gates.{iteration}"))
            gate = torch.sigmoid(gate_logits[-1])
            if gate < self.ponder.pruning_threshold:
                break
            row = row + gate * self.feed_back(hidden)
            hidden = self.run(row)
        return self.result(hidden, first=first, gate_logits=gate_logits)


class AdaptiveLatentCoT(OracleMethod):
    """Hidden states are fed back while a token continues; what is read is their mean over exits."""

    def visible_rows(self) -> Sequence[KeptRow]:
        """The versions up to this one of every earlier token, and all so far of its own."""
        *earlier, own = self.tokens
        return [row for versions in earlier for row in versions[: len(own) + 1]] + own

    def think(self, token: int) -> TokenResult:
        """Run c Emb[x], then each h again, while the reach is at least tau."""
        gate_logits = []
        hidden = first = self.run(self.embed(token))
        reach, read = hidden.new_ones(1), torch.zeros_like(hidden)
        for _ in range(self.ponder.num_latent_thoughts):
            gate_logits.append(self.decide(hidden, "ponder.router", num_layers=1))
            goes_on = torch.sigmoid(gate_logits[-1])
            if reach * goes_on < self.ponder.pruning_threshold:
                break
            read = read + reach * (1 - goes_on) * hidden
            reach = reach * goes_on
            hidden = self.run(self.ponder.step_input_scale * hidden)
        return self.result(read + reach * hidden, first=first, gate_logits=gate_logits)
