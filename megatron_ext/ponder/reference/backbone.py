"""One row through the layers of a GPT-NeoX or Llama backbone, against the rows that it may see.

d = head size, g = key/value heads, H = hidden size, V = vocabulary, R = rows seen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRow:
    """What later rows need of a row.

    Attributes:
        log_weight: scalar, added to the attention logits of the row's column.
        keys, values: one [g, d] per layer; the keys are rotated.
    """

    log_weight: Tensor
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


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
        scale_extra: attention logits are divided by the root of the head size plus this.
    """

    is_neox: bool
    weights: Mapping[str, Tensor]
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    rotary_size: int
    rotary_base: float
    norm_epsilon: float
    scale_extra: int = 0

    @property
    def embeddings(self) -> Tensor:
        """Emb, [V, H]."""
        return self.weights["gpt_neox.embed_in.weight" if self.is_neox else "model.embed_tokens.weight"]

    @property
    def head(self) -> Tensor:
        """Head, [V, H]."""
        return self.weights["embed_out.weight" if self.is_neox else "lm_head.weight"]

    def run_layers(
        self, row: Tensor, position: int, visible: Sequence[KeptRow], *, log_weight: Tensor
    ) -> tuple[Tensor, KeptRow]:
        """Run one row through all layers, without the final norm.

        Args:
            row: [H].
            position: rotary position.
            visible: the earlier rows that it attends to; it attends to itself too.
            log_weight: of its own column.
        Returns:
            The row after the last layer, [H], and what it leaves behind.
        """
        own = KeptRow(log_weight=log_weight)
        layer = self._neox_layer if self.is_neox else self._llama_layer
        for index in range(self.num_layers):
            row = layer(index, row, position, [*visible, own])
        return row, own

    def final_norm(self, row: Tensor) -> Tensor:
        """Apply the norm after the last layer; the shape is kept."""
        return self._norm(row, "gpt_neox.final_layer_norm" if self.is_neox else "model.norm")

    def two_layers(self, row: Tensor, name: str) -> Tensor:
        """Linear, exact GELU, linear: a router or a gate."""
        return self.linear(functional.gelu(self.linear(row, f"{name}.0")), f"{name}.2")

    def _neox_layer(self, index: int, row: Tensor, position: int, rows: Sequence[KeptRow]) -> Tensor:
        name = f"gpt_neox.layers.{index}"
        joined = self.linear(self._norm(row, f"{name}.input_layernorm"), f"{name}.attention.query_key_value")
        # [3H] -> [heads, 3, d] -> three of [heads, d]
        query, key, value = joined.reshape(self.num_heads, 3, -1).unbind(1)
        attended = self.linear(
            self._attend(index, query, key, value, position, rows), f"{name}.attention.dense"
        )
        inner = self.linear(self._norm(row, f"{name}.post_attention_layernorm"), f"{name}.mlp.dense_h_to_4h")
        return row + attended + self.linear(functional.gelu(inner), f"{name}.mlp.dense_4h_to_h")

    def _llama_layer(self, index: int, row: Tensor, position: int, rows: Sequence[KeptRow]) -> Tensor:
        name = f"model.layers.{index}"
        normed = self._norm(row, f"{name}.input_layernorm")
        query = self.linear(normed, f"{name}.self_attn.q_proj").reshape(self.num_heads, -1)
        key = self.linear(normed, f"{name}.self_attn.k_proj").reshape(self.num_key_value_heads, -1)
        value = self.linear(normed, f"{name}.self_attn.v_proj").reshape(self.num_key_value_heads, -1)
        row = row + self.linear(
            self._attend(index, query, key, value, position, rows), f"{name}.self_attn.o_proj"
        )
        normed = self._norm(row, f"{name}.post_attention_layernorm")
        gate = functional.silu(self.linear(normed, f"{name}.mlp.gate_proj"))
        return row + self.linear(gate * self.linear(normed, f"{name}.mlp.up_proj"), f"{name}.mlp.down_proj")

    def _attend(
        self, index: int, query: Tensor, key: Tensor, value: Tensor, position: int, rows: Sequence[KeptRow]
    ) -> Tensor:
        """[heads, d] against layer `index` of all rows, the last of which is its own: -> [heads * d]."""
        rows[-1].keys.append(self._rotate(key, position))
        rows[-1].values.append(value)
        query = self._rotate(query, position)
        # R times [g, d] -> [R, g, d]
        keys = torch.stack([row.keys[index] for row in rows])
        values = torch.stack([row.values[index] for row in rows])
        log_weights = torch.stack([row.log_weight for row in rows])
        group_size = self.num_heads // self.num_key_value_heads
        outputs = []
        for head in range(self.num_heads):
            group = head // group_size
            scale = 1 / math.sqrt(query.shape[1] + self.scale_extra)
            logits = scale * (keys[:, group] @ query[head]) + log_weights
            outputs.append(torch.softmax(logits, dim=0) @ values[:, group])
        return torch.cat(outputs)

    def _rotate(self, heads: Tensor, position: int) -> Tensor:
        """Half-split rotary on the first channels of each head."""
        size = self.rotary_size
        rotated = heads.clone()
        for channel in range(size // 2):
            angle = position / self.rotary_base ** (2 * channel / size)
            first, second = heads[:, channel], heads[:, channel + size // 2]
            rotated[:, channel] = first * math.cos(angle) - second * math.sin(angle)
            rotated[:, channel + size // 2] = second * math.cos(angle) + first * math.sin(angle)
        return rotated

    def _norm(self, row: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        if self.is_neox:
            return functional.layer_norm(
                row, row.shape, weight, self.weights[f"{name}.bias"], self.norm_epsilon
            )
        return weight * row / (row.square().mean() + self.norm_epsilon).sqrt()

    def linear(self, row: Tensor, name: str) -> Tensor:
        """Apply a linear map, with its bias if it has one."""
        return functional.linear(row, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))
