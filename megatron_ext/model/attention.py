"""Megatron's core attention with one weight per key column (definitions 2.6).

Megatron passes three arguments through its layers to the core attention unchanged. They carry what pondering
needs, so that none of Megatron's layers has to be rewritten:

* ``attention_mask`` carries ``log w`` of the key columns, [B, R], or None. It is the one through which
  gradients also flow under activation recompute;
* ``packed_seq_params`` carries a :class:`RowContext`;
* ``rotary_pos_emb`` carries cosines and sines of the pass, see :func:`rotary_turns`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_ext.model.cheap_work import cheap
from megatron_ext.model.config import PonderTransformerConfig
from megatron_ext.model.kernels import preferring_cudnn
from megatron_ext.model.memory import PassMemory
from megatron_ext.model.needed_rows import FIRST_LAYER, ReadSlots, RepeatedSlot
from megatron_ext.parallel.context_attention import SharedRows, attention_over_ranks, last_slot_over_ranks
from megatron_ext.ponder.attention import (
    Segments,
    attention_to_parts,
    extended_attention,
    is_one_call,
    key_weighted_attention,
    stored_attention,
)
from megatron_ext.ponder.heads import merged_heads, rotated_heads
from megatron_ext.ponder.step_attention import attention_of_last_slot, attention_to_steps, can_join


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKeys:
    """Keys and values that some rows of a call attend to: one row of each of b sequences, or q rows of one.

    Attributes:
        rows: the rows of the call.
        keys, values: [b, G, R, w], see :func:`megatron_ext.ponder.attention.stored_attention`.
        causal: whether the rows are all R stored rows, in order.
        visible: bool, [q, R], or [b, R] for one row of each sequence; None where every row sees all, or
            those before it by `causal`.
        bias: what is added to logits in its place, of the same shape; made once for all layers, or None.
        others: further keys that the rows attend to at once with these; there is then no `causal`.
    """

    rows: slice
    keys: Tensor
    values: Tensor
    causal: bool = False
    visible: Tensor | None = None
    bias: Tensor | None = None
    others: Sequence["StoredKeys"] = ()

    @property
    def visible_to_each(self) -> Tensor | None:
        """[b, q, R] of `visible`."""
        if self.visible is None:
            return None
        visible: Tensor = self.visible.unflatten(0, (len(self.keys), -1))
        return visible


class KeyValueStore(Protocol):
    """Cache of the keys and values of earlier rows in decoding."""

    def extend(self, layer_number: int, key: Tensor, value: Tensor) -> Sequence[StoredKeys]:
        """Store rows of one layer, and return the keys and values they attend to.

        Args:
            layer_number: 1-based, over the whole model.
            key, value: [rows, G, w], from :func:`megatron_ext.ponder.heads.rotated_heads`.
        Returns:
            Parts that cover the rows of the call in order.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PassKeys(ABC):
    """Which keys and values the rows of a pass attend to, where a token has versions of them.

    Attributes:
        index: of the pass, from 0.
        num_passes: how many there are in this forward.
        active: [R, B] bool, the tokens that this pass concerns; None where it is all.
        memory: holds the keys and values of earlier passes.
        shared: where several ranks share the rows, else None.
    """

    index: int
    num_passes: int
    active: Tensor | None
    memory: PassMemory
    shared: SharedRows | None = None

    @abstractmethod
    def attend(
        self, layer_number: int, query: Tensor, key: Tensor, value: Tensor, segments: Segments | None
    ) -> Tensor:
        """Attend, and keep what later passes need.

        Args:
            layer_number: 1-based, over the whole model.
            query: [R, B, A, d].
            key, value: as computed in this pass, [R, B, G, d].
            segments: runs of rows that see each other, or None.
        Returns:
            [B, A, R, d].
        """

    def _keep(self, name: str, value: Tensor) -> Tensor:
        """Keep keys or values of this pass, unless it is the final one."""
        if self.index == self.num_passes - 1:
            return value
        return self.memory.keep(f"{name}/{self.index}", value)


class IterationKeys(PassKeys):
    """A halted token keeps keys and values of its last active iteration (definitions 3.2)."""

    def attend(
        self, layer_number: int, query: Tensor, key: Tensor, value: Tensor, segments: Segments | None
    ) -> Tensor:
        """Attend to one version of each token: the computed one, or the kept one of a halted token."""
        key, value = self.align(layer_number, key, value)
        if self.shared is not None:
            return attention_over_ranks(query, [key], [value], rows=self.shared, scaled_size=query.shape[-1])
        return key_weighted_attention(_by_head(query), _by_head(key), _by_head(value), segments=segments)

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
            kept = self.memory.recall(f"{name}/{self.index - 1}")
            computed = torch.where(self.active[..., None, None], computed, kept)
        return self._keep(name, computed)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepKeys(PassKeys):
    """A step attends to those of all steps up to its own, of the tokens that ran them (definitions 3.3).

    Where several ranks share the rows, `active` is of all of them.
    """

    def __post_init__(self) -> None:
        """Note the tokens that run this step, for later ones."""
        if self.active is not None:
            self.memory.note(f"active/{self.index}", self.active)

    def attend(
        self, layer_number: int, query: Tensor, key: Tensor, value: Tensor, segments: Segments | None
    ) -> Tensor:
        """Attend to all versions so far."""
        keys = self._of_all_steps(f"key/{layer_number}", key)
        values = self._of_all_steps(f"value/{layer_number}", value)
        if self.shared is not None:
            return attention_over_ranks(
                query, keys, values, rows=self.shared, scaled_size=query.shape[-1], ran=self._ran()
            )
        return attention_to_steps(
            _by_head(query),
            [_by_head(key) for key in keys],
            [_by_head(value) for value in values],
            self._ran(),
            segments=segments,
        )

    def _of_all_steps(self, name: str, computed: Tensor) -> list[Tensor]:
        earlier = [self.memory.recall(f"{name}/{index}") for index in range(self.index)]
        return [*earlier, self._keep(name, computed)]

    def _ran(self) -> list[Tensor | None]:
        """Return the tokens that ran each step so far, [B, R]; all ran the first."""
        of_later = [self.memory.recall(f"active/{index}") for index in range(1, self.index + 1)]
        return [None, *(active.transpose(0, 1) for active in of_later)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowContext:
    """What attention needs to know about the rows of a pass besides their content.

    Attributes:
        segments: runs of rows that see each other, or None where every sequence is one document.
        shared: where several ranks share the rows, else None.
        passes: where a token has versions of its keys and values, else None.
        store: the cache of decoding; the call is then one batch of rows of many sequences.
        key_columns: of the weights of the pass's keys, from :func:`megatron_ext.ponder.heads.key_columns`.
        num_slots: n of the pass.
        read: what is read after the last layer, or None where it is all.
        repeated: how slot 0 goes through the first layer, or None where it is like every other row.
        has_fixed_rows: whether the pass has as many rows in all steps.
        qkv_format: read by Megatron: the rows are laid out as [rows, B, ...].
    """

    segments: Segments | None = None
    shared: SharedRows | None = None
    passes: PassKeys | None = None
    store: KeyValueStore | None = None
    key_columns: Tensor | None = None
    num_slots: int = 1
    read: ReadSlots | None = None
    repeated: RepeatedSlot | None = None
    has_fixed_rows: bool = True
    qkv_format: str = "sbhd"

    def read_after(self, layer_number: int) -> ReadSlots | None:
        """Return `read` for the layer that it is about, else None."""
        read = self.read
        return read if read is not None and read.layer_number == layer_number else None

    def repeated_in(self, layer_number: int) -> RepeatedSlot | None:
        """Return `repeated` for the layer that it is about, else None."""
        return self.repeated if layer_number == FIRST_LAYER else None


class RotatedAttention(SelfAttention):  # type: ignore[misc]  # Megatron is untyped
    """Megatron's self-attention up to the output projection, which the layer adds to its residual."""

    def project(self, hidden_states: Tensor) -> Tensor:
        """Return queries, keys and values of rows, before rotation.

        Args:
            hidden_states: [R or R / tp, B, H], normalized.
        Returns:
            [R, B, G, (A / G + 2) * d], of this rank's heads.
        """
        mixed: Tensor
        mixed, _ = self.get_query_key_value_tensors(hidden_states, split_qkv=False)
        return mixed

    def forward(
        self,
        mixed: Tensor,
        attention_mask: Tensor | None,
        *,
        rotary_pos_emb: Tensor,
        packed_seq_params: RowContext,
    ) -> Tensor:
        """Attend.

        Args:
            mixed: from :meth:`project`.
            attention_mask, rotary_pos_emb, packed_seq_params: see the module.
        Returns:
            [R, B, A * d], of this rank's heads, for the rows that are read.
        """
        weighs_here = packed_seq_params.key_columns is not None
        query, key, value = rotated_heads(
            mixed,
            rotary_pos_emb,
            attention_mask if weighs_here else None,
            packed_seq_params.key_columns,
            head_size=self.hidden_size_per_attention_head,
            scale_extra=self.config.ponder.form.attention_scale_extra,
            fuses=self.config.fuses,
        )
        attended: Tensor = self.core_attention(
            query, key, value, attention_mask, packed_seq_params=packed_seq_params
        )
        return attended


class KeyWeightedAttention(MegatronModule):  # type: ignore[misc]  # Megatron is untyped
    """Causal attention within documents, with keys weighted by their tail mass."""

    def __init__(self, config: PonderTransformerConfig, layer_number: int, **_: Any) -> None:
        """Keep the layer number; Megatron's other arguments have no effect, and there are no weights."""
        super().__init__(config=config)
        self.layer_number = layer_number
        self._head_size = config.kv_channels
        self._scale_extra = config.ponder.form.attention_scale_extra
        self._prefers_cudnn = config.prefers_cudnn
        self._fuses = config.fuses

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        packed_seq_params: RowContext,
    ) -> Tensor:
        """Attend.

        Args:
            query: [R, B, A, w]; key, value: [R, B, G, w], from :func:`rotated_heads`; B is 1 with a store.
            attention_mask: log w of the key columns, [B, R], or None.
            packed_seq_params: the row context.
        Returns:
            [R, B, A * d], for the rows that are read.
        """
        context = packed_seq_params
        if context.store is not None:
            return self._attend_to_store(context.store, query, key, value)
        # The rows of documents have other lengths in every step.
        has_one_length = context.has_fixed_rows and context.segments is None
        with preferring_cudnn(self._prefers_cudnn and has_one_length):
            return self._attend_within_pass(context, query, key, value, attention_mask)

    def _attend_within_pass(
        self, context: RowContext, query: Tensor, key: Tensor, value: Tensor, log_weight: Tensor | None
    ) -> Tensor:
        """[R, B, A, w] -> [R, B, A * d], for the rows that are read."""
        if context.passes is not None:
            output = context.passes.attend(self.layer_number, query, key, value, context.segments)
            return merged_heads(output, self._head_size, fuses=self._fuses)
        read = context.read_after(self.layer_number)
        scaled_size = self._head_size + self._scale_extra
        if read is not None and read.is_last_alone and log_weight is None and can_join(query):
            output = self._attend_from_last_slot(context, read, query, key, value)
            return merged_heads(output, self._head_size, fuses=self._fuses)
        if context.shared is not None:
            output = attention_over_ranks(query, [key], [value], rows=context.shared, scaled_size=scaled_size)
        else:
            output = extended_attention(
                _by_head(query),
                _by_head(key),
                _by_head(value),
                scaled_size=scaled_size,
                segments=context.segments,
            )
        merge = partial(self._merged, read=read)
        # Documents one by one keep their own results, not these, which are then kept once as well.
        is_kept = context.shared is not None or is_one_call(query, context.segments)
        return cheap(merge, output) if is_kept else merge(output)

    def _merged(self, output: Tensor, *, read: ReadSlots | None) -> Tensor:
        """[B, A, R, w] -> [R, B, A * d], for the rows that are read."""
        merged = merged_heads(output, self._head_size, fuses=self._fuses)
        return merged if read is None else read.take(merged)

    def _attend_from_last_slot(
        self, context: RowContext, read: ReadSlots, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """[S * n, B, A, d] -> [B, A, S, d], where keys have no weights."""
        if context.shared is None:
            return attention_of_last_slot(
                query, key, value, num_slots=read.num_slots, segments=context.segments
            )
        return last_slot_over_ranks(
            query,
            key,
            value,
            num_slots=read.num_slots,
            rows=context.shared,
            scaled_size=self._head_size + self._scale_extra,
        )

    def _attend_to_store(self, store: KeyValueStore, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[R, 1, A, w] -> [R, 1, A * d]."""
        parts = store.extend(self.layer_number, key.squeeze(1), value.squeeze(1))
        outputs = [self._attend_to_part(query[part.rows].squeeze(1), part) for part in parts]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        # [R, A, d] -> [R, 1, A * d]
        return output.flatten(1).unsqueeze(1)

    def _attend_to_part(self, query: Tensor, part: StoredKeys) -> Tensor:
        """[b * q, A, w] -> [b * q, A, d]."""
        # [b * q, A, w] -> [b, A, q, w]
        query = query.unflatten(0, (len(part.keys), -1)).transpose(1, 2)
        if part.others:
            sets = [part, *part.others]
            output = attention_to_parts(
                query,
                [one.keys for one in sets],
                [one.values for one in sets],
                [one.visible_to_each for one in sets],
            )
        else:
            output = stored_attention(
                query,
                part.keys,
                part.values,
                head_size=self._head_size,
                causal=part.causal,
                visible=part.visible if part.bias is None else part.bias,
                scale_extra=self._scale_extra,
            )
        # [b, A, q, d] -> [b * q, A, d]
        return output.transpose(1, 2).flatten(0, 1)


def _by_head(rows: Tensor) -> Tensor:
    """[R, B, A, d] -> [B, A, R, d]."""
    return rows.permute(1, 2, 0, 3)
