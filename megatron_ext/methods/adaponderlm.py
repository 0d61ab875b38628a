"""AdaPonderLM: a gate after every iteration of PonderLM lets a token halt for good (definitions 3.2)."""

import math

import torch
from torch import Tensor, nn

from megatron_ext.methods.base import Mixer, PassContext, PassRows, Readout, build_decider
from megatron_ext.methods.ponderlm import PonderLM
from megatron_ext.ponder.config import PonderConfig
from megatron_ext.ponder.decode.think import ByMixture, Observer, Thinking, ignore, think_until_halted
from megatron_ext.ponder.halting import active_iterations, closing_logit, in_float32, still_active
from megatron_ext.ponder.penalties import bottom_k, of_real_tokens

# Gates start at 0.9 for every token: close to PonderLM, which adds its mixtures in full.
OPEN_GATE_ODDS = 9.0


class AdaPonderLM(PonderLM):
    """One gate per iteration; a halted token keeps hidden state, keys and values of its last iteration."""

    def __init__(self, config: PonderConfig, hidden_size: int, *, decides: bool = True) -> None:
        """Build K gates Linear(H, 4H), exact GELU, Linear(4H, 1)."""
        super().__init__(config, hidden_size, decides=decides)
        if decides:
            self.gates = nn.ModuleList(
                build_decider(config, hidden_size) for _ in range(config.num_latent_thoughts)
            )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize each gate to 0.9, whatever the token."""
        if not self.decides:
            return
        for gate in self.gates:
            output = gate[2]  # type: ignore[index]
            nn.init.zeros_(output.weight)
            nn.init.constant_(output.bias, math.log(OPEN_GATE_ODDS))

    def leave(self, index: int, ended: PassRows, context: PassContext) -> PassRows:
        """Hand on m^{i+1} s^i e^i, with m^{i+1} in the column."""
        hidden = context.memory.keep(f"hidden/{index}", self._held_hidden(index, ended, context))
        context.observe(f"hidden/iteration_{index:02d}", hidden)
        logits = context.memory.keep(f"gate/{index}", self.decided(self._gate(index, hidden), context))
        was_active = torch.ones_like(logits, dtype=torch.bool) if ended.column is None else ended.column > 0
        active = still_active(was_active, logits, self.config.pruning_threshold)
        share = torch.sigmoid(logits) * active
        update = self._feed_back(hidden, context.mix_embeddings) * share.unsqueeze(-1).to(hidden.dtype)
        return PassRows(rows=update, column=active.to(logits.dtype))

    def read(self, ended: PassRows, context: PassContext) -> Readout:
        """Read the hidden state of each token after its last iteration."""
        num_iterations = self.config.num_latent_thoughts
        hidden = self._held_hidden(num_iterations, ended, context)
        context.observe("last_hidden", hidden)
        if num_iterations == 0:
            return Readout(hidden=hidden)
        logits = torch.stack([context.memory.recall(f"gate/{i}") for i in range(num_iterations)], dim=-1)
        # From here on every rank works on all tokens.
        logits = context.axis.to_full_use(logits)
        steps = active_iterations(logits, self.config.pruning_threshold)
        context.observe("gate_logits", logits)
        penalty = self._penalty(logits, context)
        self._record(steps, logits, penalty, context)
        scores = torch.sigmoid(logits).cummin(dim=-1).values
        return Readout(hidden=hidden, penalty=penalty, steps=steps, step_scores=scores)

    def think(self, rows: Tensor, mix_embeddings: Mixer, observe: Observer = ignore) -> Thinking:
        """Iterate until a gate closes."""
        return think_until_halted(
            self._first_input(rows),
            num_iterations=self.config.num_latent_thoughts,
            feed_back=ByMixture(self._feed_back, mix_embeddings),
            gate=self._gate,
            threshold=self.config.pruning_threshold,
            observe=observe,
        )

    def statistics_layout(self) -> dict[str, int]:
        """Sums over real tokens."""
        if self.config.num_latent_thoughts == 0:
            return {}
        return {
            "steps_count": self.config.num_slots,
            "gate_mean": self.config.num_latent_thoughts,
            "penalty": 1,
        }

    def _gate(self, index: int, hidden: Tensor) -> Tensor:
        """Return g of iteration `index`, in at least float32: [S, B, H] -> [S, B]."""
        layers = self.gates[index]
        assert isinstance(layers, nn.Sequential)
        return in_float32(layers, hidden).squeeze(-1)

    def _held_hidden(self, index: int, ended: PassRows, context: PassContext) -> Tensor:
        """Return h of iteration `index`: a halted token has that of its last active one."""
        if ended.column is None:
            return ended.rows
        is_active = (ended.column > 0).unsqueeze(-1)
        return torch.where(is_active, ended.rows, context.memory.recall(f"hidden/{index - 1}"))

    def _penalty(self, logits: Tensor, context: PassContext) -> Tensor:
        """Return the bottom-k penalty of the gate logits, [S, B, K] -> scalar."""
        values = of_real_tokens(logits, context.real, context.real_rows)
        if self.config.bottom_k_floor:
            # Pushing a closed gate changes nothing for its token, but moves weights that all tokens share.
            values = values.clamp_min(closing_logit(self.config.pruning_threshold))
        return bottom_k(values, context.bottom_k_fraction)

    @torch.no_grad()
    def _record(self, steps: Tensor, logits: Tensor, penalty: Tensor, context: PassContext) -> None:
        real = context.real.unsqueeze(-1)
        taken = nn.functional.one_hot(steps, self.config.num_slots)
        context.statistics |= {
            # [S, B, K + 1] -> [K + 1]
            "steps_count": (taken * real).sum(dim=(0, 1)).to(logits.dtype),
            # [S, B, K] -> [K]
            "gate_mean": (torch.sigmoid(logits) * real).sum(dim=(0, 1)),
            "penalty": (penalty * context.real.sum()).reshape(1),
        }
