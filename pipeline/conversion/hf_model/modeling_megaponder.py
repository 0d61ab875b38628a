"""MegaPonder: language models whose tokens take extra steps before they are predicted from.

Backbones are GPT-NeoX and Llama. A *row* is what goes through the layers; one token has several:

* ``pause``, ``ponderlm2``, ``ponderlm3``: a token owns K + 1 *slots*, one row each, one after another. Slot
  0 is its embedding. Slot k > 0 is a pause token, or a *latent thought*: what came out of slot k - 1. The
  router of ponderlm3 gives each token a distribution over its steps; slots with too little tail mass are
  pruned.
* ``loop``, ``ponderlm``, ``adaponderlm``, ``adaptive_latent_cot``: a token owns one row that runs K + 1
  times. Each *version* of it has keys and values of its own. A gate of adaponderlm ends the iterations of a
  token for good; so does the router of adaptive_latent_cot, whose version k sees all versions up to k.

There are two ways to run, and they agree:

* ``model(input_ids)`` is the forward of training: thoughts come from Jacobi sweeps over all tokens at once,
  ponderlm3 weighs slots softly. It gives logits and, for labels, the loss, and has gradients.
* ``model.generate(...)`` and ``model(input_ids, use_cache=True)`` decode: each token runs the steps it needs
  and no others, pruned slots leave no keys and no values. Prompts are read by sweeps until they settle.

Both think by the functions of ``think.py`` and ``sweeps.py``; this module runs and stores their rows. Tokens
of a batch are laid end to end, sequence after sequence and without padding; only attention tells
sequences apart.

Shapes: B sequences, T columns of input_ids, N tokens of a call, R rows of a call, M = sequences that have
rows in a call, Q = most rows that one of them has, K = extra steps, H = hidden size, A = heads, G = key/value
heads, d = head size, w = channels of a stored key, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.generation import GenerationConfig, GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from megatron_ext.ponder.attention import (
    attention_to_parts,
    extended_keys,
    extended_size,
    extended_values,
    stored_attention,
)
from megatron_ext.ponder.decode.sweeps import PromptTokens, Sweeps, read_all_rows, read_by_sweeps
from megatron_ext.ponder.decode.think import (
    SlotDecision,
    Thinking,
    Thought,
    TrainingDecisions,
    TrainingRules,
    all_slots,
    slots_above,
    think,
    think_by_feedback,
    think_in_loops,
    think_in_slots,
    think_until_halted,
    think_until_stopped,
)
from megatron_ext.ponder.halting import folded_router_logits, in_float32
from megatron_ext.ponder.renewal import Renewal

from .configuration_megaponder import MegaPonderConfig

IGNORED_LABEL = -100
CACHE_GROWTH = 128
# Methods whose tokens own one row, with a version of its keys and values for each iteration.
ITERATING = ("loop", "ponderlm", "adaponderlm", "adaptive_latent_cot")


@dataclass
class PonderOutput(CausalLMOutputWithPast):
    """Logits, [B, T, V] or those of the last `logits_to_keep` tokens; extra steps of each token, [B, T]."""

    steps: Tensor | None = None


class PonderCache:
    """Keys and values of the rows that ran, for ``past_key_values``.

    The rows of a sequence are stored one after another, however many its neighbours in the batch have.
    Padding and pruned slots have none.

    Attributes:
        keys, values: by version and layer, [B, G, capacity, w].
        ran: by version, which places have a row of it, [B, capacity]; only where versions are seen together.
        num_rows: stored rows of each sequence, [B].
        num_tokens: tokens of each sequence, without padding, [B].
        steps: extra steps that each token took, 0 at padding, [B, columns of input_ids].
    """

    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        self.keys: dict[tuple[int, int], Tensor] = {}
        self.values: dict[tuple[int, int], Tensor] = {}
        self.ran: dict[int, Tensor] = {}
        self.num_rows = self.num_tokens = self.steps = torch.empty(0, dtype=torch.long)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the columns of ``input_ids`` that were consumed, padding included."""
        return self.steps.shape[1] if self.steps.dim() > 1 else 0

    def begin(self, input_ids: Tensor) -> None:
        """Make room for the sequences of a batch, unless there are some already."""
        if self.steps.dim() == 1:
            self.num_rows, self.num_tokens = input_ids.new_zeros(2, len(input_ids)).unbind()
            self.steps = input_ids.new_zeros(len(input_ids), 0)
        if len(self.steps) != len(input_ids):
            raise ValueError(
                f"past_key_values must hold as many sequences as input_ids has ({len(input_ids)}), but holds "
                f"{len(self.steps)}; start with a new PonderCache"
            )

    def write(self, version: int, layer: int, rows: Rows, key: Tensor, value: Tensor) -> None:
        """Store the keys and values of rows, [R, G, w]."""
        for store, new in ((self.keys, key), (self.values, value)):
            stored = store.get((version, layer))
            if stored is None:
                stored = new.new_empty(len(self.num_rows), new.shape[1], 0, new.shape[2])
            if stored.shape[2] < rows.end:
                # Zeros: a masked key or value must be a finite number.
                growth = rows.end + CACHE_GROWTH - stored.shape[2]
                stored = functional.pad(stored, (0, 0, 0, growth))
            stored[rows.sequences, :, rows.places] = new
            store[version, layer] = stored

    def mark(self, version: int, sequences: Tensor, places: Tensor) -> None:
        """Note which rows, [R], run in a version."""
        ran = self.ran.get(version)
        if ran is None:
            ran = torch.zeros(len(self.num_rows), 0, dtype=torch.bool, device=places.device)
        ran = functional.pad(ran, (0, max(int(places.max()) + 1 - ran.shape[1], 0)))
        ran[sequences, places] = True
        self.ran[version] = ran

    def read(self, version: int, layer: int, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all sequences that have rows in a call, [M, G, rows.end, w]."""
        keys, values = (store[version, layer][:, :, : rows.end] for store in (self.keys, self.values))
        if len(rows.present) < len(keys):
            keys, values = keys[rows.present], values[rows.present]
        return keys, values


class Rows:
    """The rows of a call: which sequences they belong to, where they are stored, what they attend to.

    Attributes:
        sequences: of each row, [R], rising.
        places: of each row among the stored rows of its sequence, [R].
        present: sequences that have rows, [M].
        end: largest place, plus one.
    """

    def __init__(
        self,
        sequences: Tensor,
        places: Tensor,
        cache: PonderCache,
        *,
        versions: Iterable[int],
        log_weight: Tensor | None,
        scale_extra: int = 0,
        sees_earlier: bool = False,
    ) -> None:
        """Work out what the rows see.

        Args:
            sequences, places: see above.
            cache: where keys and values are stored.
            versions: which versions of their keys and values the rows write; they read the first.
            log_weight: of the rows' keys, [R]; None where the method has none.
            scale_extra: logits are divided by the root of the head size plus this.
            sees_earlier: the rows read the versions before the first one too, of the rows that ran them.
        """
        self.sequences, self.places = sequences, places
        self._cache, self._versions, self._log_weight = cache, tuple(versions), log_weight
        self._scale_extra = scale_extra
        self.present, self._index, counts = sequences.unique_consecutive(
            return_inverse=True, return_counts=True
        )
        starts = counts.cumsum(0) - counts
        self._column = torch.arange(len(places), device=places.device) - starts[self._index]
        # One transfer from the device, for all that control flow depends on.
        self.end, self._num_columns, num_later, num_last = torch.stack(
            [
                places.max() + 1,
                counts.max(),
                (places != self._column).sum(),
                (places == places.max()).sum(),
            ]
        ).tolist()
        self._is_full = len(self.present) * self._num_columns == len(places)
        self._is_causal = num_later == 0 and self._num_columns > 1
        self._visible: Tensor | None = None
        sees_all = self._num_columns == 1 and num_last == len(places)
        if not self._is_causal and not sees_all:
            stored = torch.arange(self.end, device=places.device)
            # [M, 1, Q, end], or [M, end] for one row of each sequence
            visible = stored <= self._by_sequence(places).unsqueeze(-1)
            self._visible = visible.squeeze(1) if self._num_columns == 1 else visible.unsqueeze(1)
        self._visible_by_version: list[Tensor] = []
        if sees_earlier:
            cache.mark(self._versions[0], sequences, places)
            last_seen = self._by_sequence(places).unsqueeze(-1)
            for version in range(self._versions[0] + 1):
                ran = cache.ran[version][self.present, : self.end]
                order = torch.arange(ran.shape[1], device=places.device)
                self._visible_by_version.append(ran.unsqueeze(1) & (order <= last_seen))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to the stored rows and these: [R, A, d], keys and values [R, G, d] -> [R, A * d]."""
        if self._log_weight is not None:
            size = extended_size(key.shape[-1], self._log_weight.dtype, key.dtype)
            weight = self._log_weight.unsqueeze(1)
            key = extended_keys(key, weight, size, scale_extra=self._scale_extra)
            value = extended_values(value, size)
        for version in self._versions:
            self._cache.write(version, layer, self, key, value)
        # [R, A, d] -> [M, Q, A, d] -> [M, A, Q, d]
        query = self._by_sequence(query).transpose(1, 2)
        mixed = self._attend_to_cache(layer, query)
        # [M, A, Q, d] -> [M, Q, A * d] -> [R, A * d]
        mixed = mixed.transpose(1, 2).flatten(2)
        return mixed.flatten(0, 1) if self._is_full else mixed[self._index, self._column]

    def _attend_to_cache(self, layer: int, query: Tensor) -> Tensor:
        """[M, A, Q, d] -> the same."""
        version = self._versions[0]
        if version > 0 and self._visible_by_version:
            sets = [
                [stored[:, :, : mask.shape[-1]] for stored in self._cache.read(number, layer, self)]
                for number, mask in enumerate(self._visible_by_version)
            ]
            keys_of_versions, values_of_versions = zip(*sets, strict=True)
            return attention_to_parts(query, keys_of_versions, values_of_versions, self._visible_by_version)
        keys, values = self._cache.read(version, layer, self)
        return stored_attention(
            query,
            keys,
            values,
            causal=self._is_causal,
            visible=self._visible,
            scale_extra=self._scale_extra,
        )

    def _by_sequence(self, per_row: Tensor) -> Tensor:
        """[R, ...] -> [M, Q, ...], with 0 where a sequence has fewer rows."""
        if self._is_full:
            return per_row.reshape(len(self.present), self._num_columns, *per_row.shape[1:])
        padded = per_row.new_zeros(len(self.present), self._num_columns, *per_row.shape[1:])
        return padded.index_put((self._index, self._column), per_row)


class Rotation:
    """Rotary embedding of the first channels of each head, in half-split pairing."""

    def __init__(self, positions: Tensor, config: MegaPonderConfig, dtype: torch.dtype) -> None:
        """Prepare angles for rows at positions, [R]."""
        wide = torch.promote_types(dtype, torch.float32)
        size = int(config.head_dim * config.rotary_percent)
        exponents = torch.arange(0, size, 2, dtype=wide, device=positions.device) / size
        angles = positions.unsqueeze(-1).to(wide) * (1.0 / config.rotary_base**exponents)
        # [R, size / 2] -> [R, 1, size]
        angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)
        self._cos, self._sin, self._size = angles.cos().to(dtype), angles.sin().to(dtype), size

    def __call__(self, heads: Tensor) -> Tensor:
        """[R, heads, d] -> the same."""
        turned, rest = heads[..., : self._size], heads[..., self._size :]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * self._cos + torch.cat([-second, first], dim=-1) * self._sin
        return torch.cat([turned.to(heads.dtype), rest], dim=-1)


class RowRunner:
    """Runs and stores rows of N tokens, as ``think.RowRunner`` describes.

    A token of an iterating method has one place, at its number in the sequence. Rows of other methods are
    stored in the order of tokens and slots: after what is stored, or, where all slots of the tokens run in
    every call, after what was stored before the first call.
    """

    def __init__(
        self,
        model: MegaPonderForCausalLM,
        cache: PonderCache,
        sequences: Tensor,
        positions: Tensor,
        *,
        replaces: bool,
        keeps: bool,
    ) -> None:
        """Prepare to run rows.

        Args:
            model: whose layers run.
            cache: where rows are stored.
            sequences: which sequence of the batch each token belongs to, [N], rising.
            positions: of the tokens, [N].
            replaces: each call replaces the rows of the one before.
            keeps: the cache lasts; otherwise it is of no use after a call that replaces, and backward may
                still need what it holds.
        """
        self._model, self._cache = model, cache
        self._sequences, self._positions = sequences, positions
        self._num_before = cache.num_rows
        self._replaces, self._keeps = replaces, keeps

    def __call__(
        self,
        rows: Tensor,
        *,
        tokens: Tensor | None = None,
        log_weight: Tensor | None = None,
        version: int = 0,
        normalize: bool = True,
        places: Tensor | None = None,
    ) -> Tensor:
        """[1, R, H] -> [1, R, H]."""
        config, cache = self._model.config, self._cache
        sequences, positions = self._sequences, self._positions
        if tokens is not None:
            sequences, positions = sequences[tokens], positions[tokens]
        if not self._keeps and self._replaces and places is None:
            cache.keys, cache.values = {}, {}
        if config.method == "ponderlm3" and log_weight is None:
            log_weight = rows.new_zeros(rows.shape[1], dtype=torch.promote_types(rows.dtype, torch.float32))
        # Iterations that a token does not reach keep the keys and values of its last one.
        last_version = config.num_latent_thoughts if config.method == "adaponderlm" else version
        if places is None:
            places = positions if config.method in ITERATING else self._next_places(sequences)
        attention = Rows(
            sequences,
            places,
            cache,
            versions=range(version, last_version + 1),
            log_weight=log_weight,
            scale_extra=config.attention_scale_extra,
            sees_earlier=config.method == "adaptive_latent_cot",
        )
        return self._model.run_layers(rows[0], positions, attention, normalize=normalize).unsqueeze(0)

    def _next_places(self, sequences: Tensor) -> Tensor:
        """Give each row the next free place of its sequence: [R] -> [R]."""
        cache = self._cache
        counts = sequences.bincount(minlength=len(cache.num_rows))
        stored = self._num_before if self._replaces else cache.num_rows
        cache.num_rows = torch.where(counts > 0, stored + counts, cache.num_rows)
        first = stored - (counts.cumsum(0) - counts)
        return first[sequences] + torch.arange(len(sequences), device=sequences.device)


class NeoXLayer(nn.Module):
    """``x + attention(norm_1 x) + mlp(norm_2 x)``."""

    def __init__(self, config: MegaPonderConfig, index: int) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.index, self.num_heads = index, config.num_attention_heads
        self.input_layernorm = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.attention = nn.ModuleDict(
            {"query_key_value": nn.Linear(hidden, 3 * hidden), "dense": nn.Linear(hidden, hidden)}
        )
        self.mlp = nn.ModuleDict(
            {"dense_h_to_4h": nn.Linear(hidden, inner), "dense_4h_to_h": nn.Linear(inner, hidden)}
        )

    def forward(self, hidden: Tensor, rotate: Rotation, rows: Rows) -> Tensor:
        """[R, H] -> [R, H]."""
        mixed = self.attention["query_key_value"](self.input_layernorm(hidden))
        # Query, key and value of a head are neighbours: [R, A * 3 d] -> [R, A, 3 d]
        query, key, value = mixed.unflatten(-1, (self.num_heads, -1)).chunk(3, dim=-1)
        attended = rows.attend(self.index, rotate(query), rotate(key), value)
        inner = functional.gelu(self.mlp["dense_h_to_4h"](self.post_attention_layernorm(hidden)))
        update: Tensor = self.attention["dense"](attended) + self.mlp["dense_4h_to_h"](inner)
        return hidden + update


class LlamaLayer(nn.Module):
    """``y = x + attention(norm_1 x)``, then ``y + mlp(norm_2 y)``."""

    def __init__(self, config: MegaPonderConfig, index: int) -> None:
        super().__init__()
        hidden, inner, self.size = config.hidden_size, config.intermediate_size, config.head_dim
        queries, keys = config.num_attention_heads * self.size, config.num_key_value_heads * self.size
        self.index = index
        self.input_layernorm = nn.RMSNorm(hidden, eps=config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps=config.norm_eps)
        sizes = {"q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys)}
        sizes["o_proj"] = (queries, hidden)
        self.self_attn = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})
        sizes = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})

    def forward(self, hidden: Tensor, rotate: Rotation, rows: Rows) -> Tensor:
        """[R, H] -> [R, H]."""
        normed = self.input_layernorm(hidden)
        # [R, heads * d] -> [R, heads, d]
        query, key, value = (
            self.self_attn[f"{part}_proj"](normed).unflatten(-1, (-1, self.size)) for part in "qkv"
        )
        attended = rows.attend(self.index, rotate(query), rotate(key), value)
        hidden = hidden + self.self_attn["o_proj"](attended)
        normed = self.post_attention_layernorm(hidden)
        inner = functional.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed)
        update: Tensor = self.mlp["down_proj"](inner)
        return hidden + update


class Router(nn.Linear):
    """One linear map in at least float32, whatever its weights are; halting needs it."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., outputs]."""
        with torch.autocast(hidden.device.type, enabled=False):
            return in_float32(self, hidden)


class Decider(nn.Sequential):
    """A router or a gate: two layers in at least float32, whatever the weights are; halting needs it."""

    def __init__(self, size: int, inner: int, outputs: int) -> None:
        super().__init__(nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, outputs))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., outputs]."""
        with torch.autocast(hidden.device.type, enabled=False):
            return in_float32(self, hidden)


# Class of the layers, and the names of base model, embedding, final norm and head in files of weights.
BACKBONES: dict[str, tuple[type[NeoXLayer | LlamaLayer], tuple[str, str, str, str]]] = {
    "gpt_neox": (NeoXLayer, ("gpt_neox", "embed_in", "final_layer_norm", "embed_out")),
    "llama": (LlamaLayer, ("model", "embed_tokens", "norm", "lm_head")),
}


class MegaPonderForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model that ponders by ``config.method``."""

    config_class = MegaPonderConfig
    _supports_sdpa = True

    def __init__(self, config: MegaPonderConfig) -> None:
        super().__init__(config)
        hidden, steps = config.hidden_size, config.num_latent_thoughts
        layer, (base, embedding, norm, head) = BACKBONES[config.backbone]
        # The padding token of Llama gets no gradient from being looked up.
        padding = config.pad_token_id if config.backbone == "llama" else None
        norm_class = nn.LayerNorm if config.backbone == "gpt_neox" else nn.RMSNorm
        parts = {
            embedding: nn.Embedding(config.num_embeddings, hidden, padding_idx=padding),
            "layers": nn.ModuleList(layer(config, index) for index in range(config.num_hidden_layers)),
            norm: norm_class(hidden, eps=config.norm_eps),
        }
        self.add_module(base, nn.ModuleDict(parts))
        if not config.tie_word_embeddings:
            self.add_module(head, nn.Linear(hidden, config.vocab_size, bias=False))
        self.ponder = nn.ModuleDict()
        if config.method == "ponderlm3":
            is_linear = config.router == "linear"
            self.ponder["router"] = (
                Router(hidden, steps + 1) if is_linear else Decider(hidden, hidden // 4, steps + 1)
            )
        if config.method == "adaptive_latent_cot":
            self.ponder["router"] = Router(hidden, 1)
        if config.method == "adaponderlm":
            self.ponder["gates"] = nn.ModuleList(Decider(hidden, 4 * hidden, 1) for _ in range(steps))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: PonderCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_jacobi_iterations: int | None = None,
        return_dict: bool | None = None,
    ) -> PonderOutput | tuple[Any, ...]:
        """Run the forward of training, or decode where there is a cache.

        Args:
            input_ids: [B, T]; with a cache only tokens that are not in it.
            attention_mask: 0 at padding, on either side, [B, T] or with the columns in the cache before that.
            labels: [B, T], as `input_ids`, -100 where there is none; they are shifted here. The loss is the
                mean cross-entropy, without a halting penalty.
            past_key_values: what came before.
            use_cache: decode and return a cache, without gradients; default: where one is given.
            logits_to_keep: compute logits of so many last columns; 0 is all.
            num_jacobi_iterations: J of a training forward; default: the configured number.
            return_dict: False returns a tuple.
        Raises:
            ValueError: a prompt that is to be continued ends with padding.
        """
        decodes = use_cache or (use_cache is None and past_key_values is not None)
        cache = (past_key_values or PonderCache()) if decodes else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not decodes):
            hidden, steps = self._consume(input_ids, attention_mask, cache, num_jacobi_iterations)
        logits = self._head(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            wide = torch.promote_types(logits.dtype, torch.float32)
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).to(wide),
                labels[:, -logits.shape[1] :][:, 1:].flatten(),
                ignore_index=IGNORED_LABEL,
            )
        output = PonderOutput(loss=loss, logits=logits, past_key_values=cache, steps=steps)
        return output.to_tuple() if return_dict is False else output

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        base, embedding, _, _ = BACKBONES[self.config.backbone][1]
        module: nn.Module = self.get_submodule(f"{base}.{embedding}")
        return module

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the head; None where it is the embedding."""
        head: nn.Module | None = getattr(self, BACKBONES[self.config.backbone][1][3], None)
        return head

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Reject another vocabulary."""
        raise NotImplementedError(
            "the vocabulary of a MegaPonder model is fixed; convert it with another one"
        )

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *arguments: Any, **settings: Any
    ) -> nn.Module:
        """Reject another vocabulary, before anything is changed."""
        embeddings = self.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding), "the model builds it"
        if new_num_tokens is not None and new_num_tokens != embeddings.num_embeddings:
            raise NotImplementedError(
                f"the vocabulary of a MegaPonder model is fixed to {embeddings.num_embeddings} rows; "
                "convert it with another one"
            )
        return embeddings

    # ---- thinking about a batch of tokens ----

    def _consume(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        cache: PonderCache | None,
        num_sweeps: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Think about tokens, [B, T], and return what the head reads, [B, T, H], and their steps, [B, T]."""
        is_token = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            is_token = attention_mask[:, -input_ids.shape[1] :].bool()
        if cache is not None and not bool(is_token[:, -1].all()):
            raise ValueError(
                "prompts that are continued must be padded on the left, but the last column has padding; set "
                "tokenizer.padding_side = 'left'"
            )
        store = PonderCache() if cache is None else cache
        store.begin(input_ids)
        positions = is_token.cumsum(dim=1) - 1 + store.num_tokens.unsqueeze(1)
        sequences = is_token.nonzero()[:, 0]
        decodes = cache is not None and input_ids.shape[1] == 1
        has_all_rows = not decodes or self.config.method in ("vanilla", "pause")
        replaces = has_all_rows and self.config.method not in ITERATING
        run = RowRunner(
            self, store, sequences, positions[is_token], replaces=replaces, keeps=cache is not None
        )
        prompts = PromptTokens(sequences=sequences, sweeps=self._sweeps(cache is not None, num_sweeps))
        thought = self._think(
            input_ids[is_token], run, None if decodes else prompts, prunes=cache is not None
        )
        hidden = thought.hidden.new_zeros(*is_token.shape, thought.hidden.shape[-1])
        hidden[is_token] = thought.hidden[0]
        steps = torch.zeros_like(input_ids)
        steps[is_token] = thought.steps
        store.num_tokens = store.num_tokens + is_token.sum(dim=1)
        store.steps = torch.cat([store.steps, steps], dim=1)
        if self.config.method in ITERATING:
            store.num_rows = store.num_tokens
        return hidden, steps

    def _sweeps(self, prunes: bool, number: int | None) -> Sweeps:
        """Sweeps of the training forward, or over prompts."""
        config = self.config
        if not prunes:
            return Sweeps(number=config.num_jacobi_iterations if number is None else number)
        tolerance = config.prefill_tolerance
        if tolerance is None:
            tolerance = max(1e-5, torch.finfo(self.dtype).eps)
        return Sweeps(number=config.prefill_sweeps, tolerance=tolerance)

    def _think(
        self, tokens: Tensor, run: RowRunner, prompts: PromptTokens | None, *, prunes: bool
    ) -> Thought:
        """Think about tokens, [N], by the method of the model.

        Args:
            tokens: ids.
            run: runs and stores rows.
            prompts: whose tokens they are; None for one token of each sequence.
            prunes: halt as decoding does; otherwise take all slots, as training does.
        """
        config, num_steps = self.config, self.config.num_latent_thoughts
        if config.method in ("vanilla", "pause"):
            pauses = tokens.new_full((len(tokens), num_steps), config.pause_token_id or 0)
            # [N, K + 1] -> [1, N * (K + 1), H]
            rows = self._embed(torch.cat([tokens.unsqueeze(1), pauses], dim=1).flatten()).unsqueeze(0)
            return read_all_rows(rows, run, num_slots=num_steps + 1)
        rows = self._embed(tokens).unsqueeze(0)
        if config.method == "loop":
            return think(think_in_loops(rows, num_iterations=num_steps), run)
        if config.method in ITERATING:
            return think(self._iterate(rows * num_steps if config.multiply_embedding else rows), run)
        if prompts is None:
            thinking = think_in_slots(
                rows, num_thoughts=num_steps, decide=self._decide, next_thought=self._feed_back
            )
            return think(thinking, run)
        training = None
        if config.method == "ponderlm3" and not prunes:
            assert prompts.sweeps.number is not None, "a forward of training has a number of sweeps"
            rules = self._training_rules(prompts.sweeps.number)
            training = TrainingDecisions(self._router_logits, rules)
        slots = read_by_sweeps(
            rows[0],
            prompts,
            num_thoughts=num_steps,
            run=run,
            decide=training or self._decide,
            next_thought=self._feed_back,
        )
        thought = slots.decision.read(slots.hidden)
        if training is None:
            return thought
        # Training weighs all slots, and reports the steps that decoding would take.
        return Thought(hidden=thought.hidden, steps=training.steps_of_decoding())

    def _training_rules(self, num_sweeps: int) -> TrainingRules:
        config = self.config
        return TrainingRules(
            renewal=Renewal(
                pre_pass=config.pre_pass,
                damping=config.router_damping,
                undamped_sweeps=config.undamped_sweeps,
                reads_last_sweep=config.readout_from == "last_sweep",
            ),
            num_thoughts=config.num_latent_thoughts,
            num_sweeps=num_sweeps,
            threshold=config.pruning_threshold,
            hides_keys=config.mask_in_training == "hard",
            reads_last=config.reading == "last_step",
        )

    def _iterate(self, first: Tensor) -> Thinking:
        config, num_iterations = self.config, self.config.num_latent_thoughts
        if config.method == "ponderlm":
            return think_by_feedback(
                first,
                num_iterations=num_iterations,
                feed_back=self._feed_back,
                from_first=config.residual == "from_embedding",
            )
        if config.method == "adaptive_latent_cot":
            return think_until_stopped(
                first,
                num_steps=num_iterations,
                next_input=lambda hidden: hidden * config.step_input_scale,
                router=lambda hidden: self.ponder["router"](hidden).squeeze(-1),
                threshold=config.pruning_threshold,
            )
        return think_until_halted(
            first,
            num_iterations=num_iterations,
            feed_back=self._feed_back,
            gate=lambda index, hidden: self.ponder.get_submodule(f"gates.{index}")(hidden).squeeze(-1),
            threshold=config.pruning_threshold,
        )

    def _router_logits(self, token_hidden: Tensor) -> Tensor:
        """Return the router's logits for steps 0..K, where K may be below the one it was trained for."""
        return folded_router_logits(self.ponder["router"](token_hidden), self.config.num_latent_thoughts)

    def _decide(self, token_hidden: Tensor) -> SlotDecision:
        """Decide which slots tokens take, by their slot 0 after the final norm, [1, N, H]."""
        config = self.config
        if config.method == "ponderlm2":
            return all_slots(token_hidden, config.num_latent_thoughts)
        return slots_above(
            self._router_logits(token_hidden),
            config.pruning_threshold,
            hides_keys=config.mask_in_training == "hard",
            reads_last=config.reading == "last_step",
        )

    # ---- parts of the model ----

    def run_layers(self, hidden: Tensor, positions: Tensor, rows: Rows, *, normalize: bool) -> Tensor:
        """Run rows at rotary positions, [R], through all layers: [R, H] -> [R, H]."""
        base, _, norm, _ = BACKBONES[self.config.backbone][1]
        rotate = Rotation(positions, self.config, hidden.dtype)
        for layer in self.get_submodule(f"{base}.layers").children():
            hidden = layer(hidden, rotate, rows)
        if normalize:
            hidden = self.get_submodule(f"{base}.{norm}")(hidden)
        return hidden

    def _embed(self, tokens: Tensor) -> Tensor:
        """[...] -> [..., H]."""
        embeddings: Tensor = self.get_input_embeddings()(tokens) * self.config.embedding_scale
        return embeddings

    def _head(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V]."""
        head = self.get_output_embeddings() or self.get_input_embeddings()
        return functional.linear(hidden, head.get_parameter("weight")[: self.config.vocab_size])

    def _feed_back(self, hidden: Tensor) -> Tensor:
        """Return what a step feeds back: its hidden state, or the mean embedding of what it predicts."""
        config = self.config
        if config.mixture == "hidden":
            return hidden
        wide = torch.promote_types(self.dtype, torch.float32)
        logits = self._head(hidden).to(wide) / config.softmax_temperature
        if config.mixture == "top_k":
            smallest = logits.detach().topk(config.mixture_top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < smallest, float("-inf"))
        embeddings = self.get_input_embeddings().get_parameter("weight")[: config.vocab_size]
        mixed = torch.softmax(logits, dim=-1).to(embeddings.dtype) @ embeddings
        return (mixed * float(config.embedding_scale)).to(hidden.dtype)

    # ---- generate ----

    def _validate_generation_mode(self, generation_mode: GenerationMode, *others: Any) -> None:
        """Reject modes that reorder a cache or take tokens back: its sequences own different numbers of rows.

        Raises:
            ValueError: naming the way to generate.
        """
        known = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
        if generation_mode not in known:
            raise ValueError(
                "a MegaPonder model must generate by greedy_search or sample, but is asked for "
                f"{generation_mode.value}; unset num_beams, assistant_model and the like"
            )
        super()._validate_generation_mode(generation_mode, *others)

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *sizes: Any
    ) -> None:
        """Give `generate` a :class:`PonderCache`.

        Raises:
            ValueError: another kind is asked for.
        """
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                "cache_implementation must be unset, because pondering needs its own cache, but is "
                f"{generation_config.cache_implementation!r}"
            )
        given = model_kwargs.get("past_key_values")
        if not isinstance(given, PonderCache | None):
            raise ValueError(f"past_key_values must be a PonderCache, but is a {type(given).__name__}")
        if given is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = PonderCache()
