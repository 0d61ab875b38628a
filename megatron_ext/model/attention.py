"""Megatron's core attention with one weight per key column (definitions 2.6).

Megatron passes three arguments through its layers to the core attention unchanged. They carry what pondering
needs, so that none of Megatron's layers has to be rewritten:

* ``attention_mask`` carries ``log w`` of the key columns, [B, R], or None. It is the one through which
  gradients also flow under activation recompute;
* ``packed_seq_params`` carries a :class:`RowContext`;
* ``rotary_pos_emb`` carries the angles of the pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_ext.model.config import PonderTransformerConfig
from megatron_ext.model.memory import PassMemory
from megatron_ext.ponder.attention import Segments, key_weighted_attention, stored_attention


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKeys:
    """Keys and values that some rows of a call attend to: one row of each of b sequences, or q rows of one.

    Attributes:
        rows: the rows of the call.
        keys, values: [b, G, R, w], see :func:`megatron_ext.ponder.attention.stored_attention`.
        causal: whether the rows are all R stored rows, in order.
        visible: bool, [q, R], or [b, R] for one row of each sequence; None where every row sees all, or
            those before it by `causal`.
    """

    rows: slice
    keys: Tensor
    values: Tensor
    causal: bool = False
    visible: Tensor | None = None


class KeyValueStore(Protocol):
    """Cache of the keys and values of earlier rows in decoding."""

    def extend(
        self, layer_number: int, key: Tensor, value: Tensor, log_weight: Tensor | None
    ) -> Sequence[StoredKeys]:
        """Store rows of one layer, and return the keys and values they attend to.

        Args:
            layer_number: 1-based, over the whole model.
            key, value: [rows, G, d], after rotary.
            log_weight: [rows], or None where rows have no weight.
        Returns:
            Parts that cover the rows of the call in order.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationKeys:
    """Keys and values that a halted token keeps from its last active iteration (definitions 3.2).

    Attributes:
        iteration: 0-based.
        num_iterations: how many there are in this forward.
        active: [R, B] bool, the tokens that still change; None where all do.
        memory: holds the aligned keys and values of earlier iterations.
    """

    iteration: int
    num_iterations: int
    active: Tensor | None
    memory: PassMemory

    def align(self, layer_number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Replace the computed keys and values of halted tokens by the kept ones.

        Args:
            layer_number: 1-based, over the whole model.
            key, value: [R, B, G, d].
        Returns:
            Both, in the same layout.
        """
        key, value = (
            self._align_one(f"{what}/{layer_number}", computed)
            for what, computed in (("key", key), ("value", value))
        )
        return key, value

    def _align_one(self, name: str, computed: Tensor) -> Tensor:
        if self.active is not None:
            kept = self.memory.recall(f"{name}/{self.iteration - 1}")
            computed = torch.where(self.active[..., None, None], computed, kept)
        if self.iteration == self.num_iterations - 1:
            return computed
        return self.memory.keep(f"{name}/{self.iteration}", computed)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowContext:
    """What attention needs to know about the rows of a pass besides their content.

    Attributes:
        segments: runs of rows that see each other, or None where every sequence is one document.
        iteration_keys: where tokens halt and keep their keys and values, else None.
        store: the cache of decoding; the call is then one batch of rows of many sequences.
        qkv_format: read by Megatron: the rows are laid out as [rows, B, ...].
    """

    segments: Segments | None = None
    iteration_keys: IterationKeys | None = None
    store: KeyValueStore | None = None
    qkv_format: str = "sbhd"


class KeyWeightedAttention(MegatronModule):  # type: ignore[misc]  # Megatron is untyped
    """Causal attention within documents, with keys weighted by their tail mass."""

    def __init__(self, config: PonderTransformerConfig, layer_number: int, **_: Any) -> None:
        """Keep the layer number; Megatron's other arguments have no effect, and there are no weights."""
        super().__init__(config=config)
        self.layer_number = layer_number
        self._scale_extra = config.ponder.form.attention_scale_extra

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        packed_seq_params: RowContext,
        attn_mask_type: object = None,
        attention_bias: None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [R, B, A, d]; key, value: [R, B, G, d], after rotary; B is 1 with a store.
            attention_mask: log w of the key columns, [B, R], or None.
            packed_seq_params: the row context.
            attn_mask_type, attention_bias: Megatron's, unused.
        Returns:
            [R, B, A * d].
        """
        if packed_seq_params.iteration_keys is not None:
            key, value = packed_seq_params.iteration_keys.align(self.layer_number, key, value)
        if packed_seq_params.store is not None:
            return self._attend_to_store(packed_seq_params.store, query, key, value, attention_mask)
        # [R, B, A, d] -> [B, A, R, d]
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        output = key_weighted_attention(
            query,
            key,
            value,
            attention_mask,
            segments=packed_seq_params.segments,
            scale_extra=self._scale_extra,
        )
        # [B, A, R, d] -> [R, B, A * d]
        return output.permute(2, 0, 1, 3).flatten(2).contiguous()

    def _attend_to_store(
        self, store: KeyValueStore, query: Tensor, key: Tensor, value: Tensor, log_weight: Tensor | None
    ) -> Tensor:
        """[R, 1, A, d] -> [R, 1, A * d]."""
        weight = None if log_weight is None else log_weight[0]
        parts = store.extend(self.layer_number, key.squeeze(1), value.squeeze(1), weight)
        outputs = [self._attend_to_part(query[part.rows].squeeze(1), part) for part in parts]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        # [R, A, d] -> [R, 1, A * d]
        return output.flatten(1).unsqueeze(1)

    def _attend_to_part(self, query: Tensor, part: StoredKeys) -> Tensor:
        """[b * q, A, d] -> the same."""
        # [b * q, A, d] -> [b, A, q, d]
        query = query.unflatten(0, (len(part.keys), -1)).transpose(1, 2)
        output = stored_attention(
            query,
            part.keys,
            part.values,
            causal=part.causal,
            visible=part.visible,
            scale_extra=self._scale_extra,
        )
        # [b, A, q, d] -> [b * q, A, d]
        return output.transpose(1, 2).flatten(0, 1)
