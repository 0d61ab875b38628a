"""The slow, obvious left-to-right computation that training approximates and decoding must equal.

Plain torch on Hugging Face weights, one row at a time, keys and values in lists: no batches, no passes, no
fused kernels, nothing shared with the model. It solves the triangular system of definitions 2.1 exactly.

d = head size, H = hidden size, V = vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.ponder.config import Method, PonderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A GPT-NeoX or Llama backbone as plain numbers.

    Attributes:
        is_neox: GPT-NeoX, else Llama.
        weights: parameters by Hugging Face name, in the dtype to compute in.
        num_layers, num_heads, num_key_value_heads: sizes.
        rotary_size: rotated channels of a head.
        rotary_base: rotary base.
        norm_epsilon: added to the variance.
    """

    is_neox: bool
    weights: Mapping[str, Tensor]
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    rotary_size: int
    rotary_base: float
    norm_epsilon: float


@dataclass(slots=True)
class RowMemory:
    """Keys, values and log weights of all rows so far, layer by layer.

    Attributes:
        keys, values: per layer, a list of [key/value heads, d].
        log_weights: one number per row.
    """

    keys: list[list[Tensor]] = field(default_factory=list)
    values: list[list[Tensor]] = field(default_factory=list)
    log_weights: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenResult:
    """What consuming one token gives.

    Attributes:
        logits: [V], predicting the next token.
        steps: K_hat.
        thoughts: [K_hat, H], inputs of slots 1..K_hat.
    """

    logits: Tensor
    steps: int
    thoughts: Tensor


class SequentialOracle:
    """Consumes one token after another, K + 1 rows each at most."""

    def __init__(self, backbone: Backbone, ponder: PonderConfig) -> None:
        """Start with an empty sequence.

        Args:
            backbone: the layers.
            ponder: vanilla, ponderlm2 without interpolation, or ponderlm3.
        """
        self.backbone = backbone
        self.ponder = ponder
        self.memory = RowMemory(
            keys=[[] for _ in range(backbone.num_layers)], values=[[] for _ in range(backbone.num_layers)]
        )

    def consume(self, token: int, position: int) -> TokenResult:
        """Run one token through all its slots.

        Args:
            token: id.
            position: rotary position of all its slots.
        """
        embedding = self._weight("gpt_neox.embed_in.weight", "model.embed_tokens.weight")[token]
        hidden = [self._row(self._embedding_scale() * embedding, position, embedding.new_zeros(()))]
        shares, log_weights = self._halting(hidden[0])
        for log_weight in log_weights:
            hidden.append(self._row(hidden[-1], position, log_weight))
        mixed = torch.stack([share * h for share, h in zip(shares, hidden, strict=True)]).sum(0)
        head = self._weight("embed_out.weight", "lm_head.weight")
        thoughts = torch.stack(hidden[:-1]) if len(hidden) > 1 else embedding.new_zeros(0, embedding.shape[0])
        return TokenResult(logits=head @ mixed, steps=len(hidden) - 1, thoughts=thoughts)

    def _embedding_scale(self) -> float:
        if self.ponder.method is Method.VANILLA or not self.ponder.scale_embeds:
            return 1.0
        return math.sqrt(2.5 * self._weight("gpt_neox.embed_in.weight", "model.embed_tokens.weight").shape[1])

    def _halting(self, first_hidden: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Share of each kept slot in the readout, and log w of slots 1..K_hat."""
        num_thoughts = self.ponder.num_latent_thoughts
        if self.ponder.method is not Method.PONDERLM3:
            one, zero = first_hidden.new_ones(()), first_hidden.new_zeros(())
            return [zero] * num_thoughts + [one], [zero] * num_thoughts
        weights = self.backbone.weights
        inner = functional.linear(
            first_hidden, weights["ponder.router.0.weight"], weights["ponder.router.0.bias"]
        )
        logits = functional.linear(
            functional.gelu(inner), weights["ponder.router.2.weight"], weights["ponder.router.2.bias"]
        )
        steps = torch.softmax(logits, dim=0)
        masses = [steps[k:].sum() for k in range(1, num_thoughts + 1)]
        kept = [mass for mass in masses if mass >= self.ponder.pruning_threshold]
        return list(steps[: len(kept) + 1]), [mass.clamp_min(1e-9).log() for mass in kept]

    def _row(self, row: Tensor, position: int, log_weight: Tensor) -> Tensor:
        """One row through all layers and the final norm; it stays in memory."""
        self.memory.log_weights.append(log_weight)
        for index in range(self.backbone.num_layers):
            if self.backbone.is_neox:
                row = self._neox_layer(f"gpt_neox.layers.{index}", index, row, position)
            else:
                row = self._llama_layer(f"model.layers.{index}", index, row, position)
        return self._norm(row, "gpt_neox.final_layer_norm" if self.backbone.is_neox else "model.norm")

    def _neox_layer(self, name: str, index: int, row: Tensor, position: int) -> Tensor:
        heads = self.backbone.num_heads
        joined = self._linear(self._norm(row, f"{name}.input_layernorm"), f"{name}.attention.query_key_value")
        query, key, value = joined.reshape(heads, 3, -1).unbind(1)
        attended = self._attend(index, query, key, value, position)
        update = self._linear(attended, f"{name}.attention.dense")
        inner = self._linear(self._norm(row, f"{name}.post_attention_layernorm"), f"{name}.mlp.dense_h_to_4h")
        return row + update + self._linear(functional.gelu(inner), f"{name}.mlp.dense_4h_to_h")

    def _llama_layer(self, name: str, index: int, row: Tensor, position: int) -> Tensor:
        normed = self._norm(row, f"{name}.input_layernorm")
        query, key, value = (self._linear(normed, f"{name}.self_attn.{part}_proj") for part in "qkv")
        groups = self.backbone.num_key_value_heads
        attended = self._attend(
            index,
            query.reshape(self.backbone.num_heads, -1),
            key.reshape(groups, -1),
            value.reshape(groups, -1),
            position,
        )
        row = row + self._linear(attended, f"{name}.self_attn.o_proj")
        normed = self._norm(row, f"{name}.post_attention_layernorm")
        gated = functional.silu(self._linear(normed, f"{name}.mlp.gate_proj"))
        return row + self._linear(
            gated * self._linear(normed, f"{name}.mlp.up_proj"), f"{name}.mlp.down_proj"
        )

    def _attend(self, index: int, query: Tensor, key: Tensor, value: Tensor, position: int) -> Tensor:
        """[heads, d] against all rows of layer `index` so far, the new one included: -> [heads * d]."""
        self.memory.keys[index].append(self._rotate(key, position))
        self.memory.values[index].append(value)
        query = self._rotate(query, position)
        log_weights = torch.stack(self.memory.log_weights)
        group_size = query.shape[0] // key.shape[0]
        outputs = []
        for head in range(query.shape[0]):
            keys = torch.stack([k[head // group_size] for k in self.memory.keys[index]])
            values = torch.stack([v[head // group_size] for v in self.memory.values[index]])
            logits = keys @ query[head] / math.sqrt(query.shape[1]) + log_weights
            outputs.append(torch.softmax(logits, dim=0) @ values)
        return torch.cat(outputs)

    def _rotate(self, heads: Tensor, position: int) -> Tensor:
        """Half-split rotary on the first channels of each head."""
        size = self.backbone.rotary_size
        rotated = heads[:, :size].clone()
        for channel in range(size // 2):
            angle = position / self.backbone.rotary_base ** (2 * channel / size)
            first, second = heads[:, channel], heads[:, channel + size // 2]
            rotated[:, channel] = first * math.cos(angle) - second * math.sin(angle)
            rotated[:, channel + size // 2] = second * math.cos(angle) + first * math.sin(angle)
        return torch.cat([rotated, heads[:, size:]], dim=1)

    def _norm(self, row: Tensor, name: str) -> Tensor:
        weight, epsilon = self.backbone.weights[f"{name}.weight"], self.backbone.norm_epsilon
        if self.backbone.is_neox:
            return functional.layer_norm(
                row, row.shape, weight, self.backbone.weights[f"{name}.bias"], epsilon
            )
        return weight * row / (row.square().mean() + epsilon).sqrt()

    def _linear(self, row: Tensor, name: str) -> Tensor:
        return functional.linear(
            row, self.backbone.weights[f"{name}.weight"], self.backbone.weights.get(f"{name}.bias")
        )

    def _weight(self, neox: str, llama: str) -> Tensor:
        return self.backbone.weights[neox if self.backbone.is_neox else llama]
