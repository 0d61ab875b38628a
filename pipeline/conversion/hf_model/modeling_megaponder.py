"""MegaPonder: language models whose tokens take extra steps before they are predicted from.

Backbones are GPT-NeoX and Llama. A *row* is what goes through the layers; one token has several:

* ``pause``, ``ponderlm2``, ``ponderlm3``: a token owns K + 1 *slots*, one row each, which stand one behind
  the other. Slot 0 is its embedding. Slot k > 0 is a pause token, or a *latent thought*: what came out of
  slot k - 1. The router of ponderlm3 gives each token a distribution over its steps; slots with too little
  tail mass are pruned.
* ``loop``, ``ponderlm``, ``adaponderlm``: a token owns one row that runs K + 1 times. Each *version* of it
  has keys and values of its own. A gate of adaponderlm ends the iterations of a token for good.

There are two ways to run, and they agree:

* ``model(input_ids)`` is the forward of training: thoughts come from Jacobi sweeps over all tokens at once,
  ponderlm3 weighs slots softly. It gives logits and, for labels, the loss, and has gradients.
* ``model.generate(...)`` and ``model(input_ids, use_cache=True)`` decode: each token runs the steps it needs
  and no others, pruned slots leave no keys and no values. Prompts are read by sweeps until they stand.

Shapes: B sequences, T tokens, N = sequences in a call, Q = rows of each, K = extra steps, H = hidden size,
A = heads, G = key/value heads, d = head size, R = stored rows, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.generation import GenerationConfig, GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_megaponder import MegaPonderConfig

IGNORED_LABEL = -100
# log w is clamped here.
SMALLEST_TAIL_MASS = 1e-9
# A key has this many further channels for its log weight: two are used, fused kernels want a multiple of 8.
WEIGHT_CHANNELS = 8
CACHE_GROWTH = 128


@dataclass
class PonderOutput(CausalLMOutputWithPast):
    """Logits, [B, T, V] or those of the last `logits_to_keep` tokens; extra steps of each token, [B, T]."""

    steps: Tensor | None = None


class PonderCache:
    """Keys and values of the rows that ran, for ``past_key_values``.

    The rows of a sequence stand one behind the other, however many its neighbours in the batch have. Padding
    and pruned slots have none.

    Attributes:
        keys, values: by version and layer, [B, G, capacity, w].
        num_rows: stored rows of each sequence, [B].
        num_tokens: tokens of each sequence, without padding, [B].
        steps: extra steps that every token took, 0 at padding, [B, columns of input_ids].
    """

    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        self.keys: dict[tuple[int, int], Tensor] = {}
        self.values: dict[tuple[int, int], Tensor] = {}
        self.num_rows = self.num_tokens = self.steps = torch.empty(0, dtype=torch.long)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the columns of ``input_ids`` that were consumed, padding included."""
        return self.steps.shape[1] if self.steps.dim() > 1 else 0

    def begin(self, input_ids: Tensor) -> None:
        """Make room for the sequences of a batch; do nothing where there is some."""
        if self.steps.dim() == 1:
            self.num_rows, self.num_tokens = input_ids.new_zeros(2, len(input_ids)).unbind()
            self.steps = input_ids.new_zeros(len(input_ids), 0)
        if len(self.steps) != len(input_ids):
            raise ValueError(
                f"past_key_values must hold as many sequences as input_ids has ({len(input_ids)}), but holds "
                f"{len(self.steps)}; start with a new PonderCache"
            )

    def write(
        self, version: int, layer: int, rows: Rows, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put rows behind the stored ones, which stay behind `num_rows` until that is raised.

        Args:
            key, value: [N, G, Q, w].
        Returns:
            All keys and values of these sequences, [N, G, R + Q, w].
        """
        found = []
        for store, new in ((self.keys, key), (self.values, value)):
            whole = store.get((version, layer))
            if whole is None:
                whole = new.new_empty(len(self.num_rows), new.shape[1], 0, new.shape[3])
            if whole.shape[2] < rows.end:
                grown = rows.end + CACHE_GROWTH - whole.shape[2]
                whole = store[version, layer] = functional.pad(whole, (0, 0, 0, grown))
            whole[rows.sequences.unsqueeze(1), :, rows.places] = new.transpose(1, 2)
            seen = whole[:, :, : rows.end]
            found.append(seen if len(rows.sequences) == len(seen) else seen[rows.sequences])
        return found[0], found[1]

    def read(self, version: int, layer: int, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return what was written for some rows, [N, G, Q, w]."""
        keys, values = (
            store[version, layer][rows.sequences.unsqueeze(1), :, rows.places].transpose(1, 2)
            for store in (self.keys, self.values)
        )
        return keys, values

    def repeat(self, version: int, rows: Rows) -> None:
        """Let rows of halted tokens have the keys and values of the version before."""
        for layer in [layer for of, layer in self.keys if of == version - 1]:
            self.write(version, layer, rows, *self.read(version - 1, layer, rows))


@dataclass
class Rows:
    """What attention knows about the rows of a call beside their content.

    Attributes:
        positions: rotary positions, [N, Q].
        sequences: which sequences of the batch, [N].
        cache: where keys and values are stored; None attends to the rows of the call alone.
        log_weight: of the rows' keys, [N, Q]; None where the method has none.
        version: of the keys and values that are read and written.
        active: rows whose keys and values are new, [N, Q]; the others keep those of the version before. None
            where all are.
        last_version: keys and values of the version before by layer, where there is no cache.
    """

    positions: Tensor
    sequences: Tensor
    cache: PonderCache | None = None
    log_weight: Tensor | None = None
    version: int = 0
    active: Tensor | None = None
    last_version: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the places of the rows in the cache, [N, Q], and what each of them sees, [N, 1, Q, R + Q]."""
        self.visible: Tensor | None = None
        if self.cache is not None:
            stored = self.cache.num_rows[self.sequences]
            own = torch.arange(self.positions.shape[1], device=stored.device)
            self.places = stored.unsqueeze(1) + own
            self.end = int(self.places.max()) + 1
            if self.end > len(own):
                every = torch.arange(self.end, device=stored.device)
                self.visible = (every <= self.places.unsqueeze(-1)).unsqueeze(1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention: [N, A, Q, d], keys and values [N, G, Q, d] -> [N, A, Q, d]."""
        size = query.shape[-1]
        if self.log_weight is not None:
            query, key, value = with_log_weight(query, key, value, self.log_weight)
        if self.active is not None:
            is_new = self.active[:, None, :, None]
            old_key, old_value = self._before(layer)
            key, value = torch.where(is_new, key, old_key), torch.where(is_new, value, old_value)
        if self.cache is None:
            self.last_version[layer] = key, value
        else:
            key, value = self.cache.write(self.version, layer, self, key, value)
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=self.visible,
            is_causal=self.visible is None,
            scale=size**-0.5,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return mixed[..., :size]

    def _before(self, layer: int) -> tuple[Tensor, Tensor]:
        if self.cache is None:
            return self.last_version[layer]
        return self.cache.read(self.version - 1, layer, self)


def with_log_weight(
    query: Tensor, key: Tensor, value: Tensor, log_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Let each key carry the number that is added to its attention logits: plain kernels then serve.

    ``softmax((q k + sqrt(d) log w) / sqrt(d))`` is attention with one more channel, which is 1 in queries.
    A type narrower than float32 holds the number in two channels: its value, and what rounding left.
    """
    number = log_weight[:, None, :, None] * query.shape[-1] ** 0.5
    number = number.expand(-1, key.shape[1], -1, -1)
    coarse = number.to(key.dtype)
    rest = (number.detach() - coarse.detach().to(number.dtype)).to(key.dtype)
    key = functional.pad(torch.cat([key, coarse, rest], dim=-1), (0, WEIGHT_CHANNELS - 2))
    query = functional.pad(query, (0, WEIGHT_CHANNELS), value=1.0)
    return query, key, functional.pad(value, (0, WEIGHT_CHANNELS))


class Rotation:
    """Rotary embedding of the first channels of each head, in half-split pairing."""

    def __init__(self, positions: Tensor, config: MegaPonderConfig, dtype: torch.dtype) -> None:
        """Prepare angles for rows at positions, [N, Q]."""
        wide = torch.promote_types(dtype, torch.float32)
        size = int(config.head_dim * config.rotary_percent)
        exponents = torch.arange(0, size, 2, dtype=wide, device=positions.device) / size
        angles = positions.unsqueeze(-1).to(wide) * (1.0 / config.rotary_base**exponents)
        # [N, Q, size / 2] -> [N, 1, Q, size]
        angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)
        self._cos, self._sin, self._size = angles.cos().to(dtype), angles.sin().to(dtype), size

    def __call__(self, heads: Tensor) -> Tensor:
        """[N, heads, Q, d] -> the same."""
        turned, rest = heads[..., : self._size], heads[..., self._size :]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * self._cos + torch.cat([-second, first], dim=-1) * self._sin
        return torch.cat([turned.to(heads.dtype), rest], dim=-1)


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
        """[N, Q, H] -> [N, Q, H]."""
        mixed = self.attention["query_key_value"](self.input_layernorm(hidden))
        # Query, key and value of a head stand together: [N, Q, A * 3 d] -> [N, A, Q, 3 d]
        query, key, value = mixed.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        attended = rows.attend(self.index, rotate(query), rotate(key), value).transpose(1, 2).flatten(2)
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
        """[N, Q, H] -> [N, Q, H]."""
        normed = self.input_layernorm(hidden)
        # [N, Q, heads * d] -> [N, heads, Q, d]
        query, key, value = (
            self.self_attn[f"{part}_proj"](normed).unflatten(-1, (-1, self.size)).transpose(1, 2)
            for part in "qkv"
        )
        attended = rows.attend(self.index, rotate(query), rotate(key), value).transpose(1, 2).flatten(2)
        hidden = hidden + self.self_attn["o_proj"](attended)
        normed = self.post_attention_layernorm(hidden)
        inner = functional.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed)
        update: Tensor = self.mlp["down_proj"](inner)
        return hidden + update


class Decider(nn.Sequential):
    """A router or a gate: two layers in at least float32, whatever the weights are; halting needs it."""

    def __init__(self, size: int, inner: int, outputs: int) -> None:
        super().__init__(nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, outputs))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., outputs]."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        hidden = hidden.to(wide)
        with torch.autocast(hidden.device.type, enabled=False):
            for layer in self:
                if isinstance(layer, nn.Linear):
                    hidden = functional.linear(hidden, layer.weight.to(wide), layer.bias.to(wide))
                else:
                    hidden = layer(hidden)
        return hidden


# Class of the layers, and the names of base model, embedding, final norm and head in files of weights.
BACKBONES: dict[str, tuple[type[NeoXLayer | LlamaLayer], tuple[str, str, str, str]]] = {
    "gpt_neox": (NeoXLayer, ("gpt_neox", "embed_in", "final_layer_norm", "embed_out")),
    "llama": (LlamaLayer, ("model", "embed_tokens", "norm", "lm_head")),
}


@dataclass
class Decision:
    """Which steps tokens take.

    Attributes:
        steps: the last slot of each, [...].
        log_weight: of the keys of all slots, [..., K + 1]; None where slots weigh the same.
        shares: of the slots in what is read, [..., K + 1]; None where the last slot is read.
    """

    steps: Tensor
    log_weight: Tensor | None = None
    shares: Tensor | None = None

    def read(self, hidden: Tensor, steps: Tensor) -> Tensor:
        """What the head reads of slots after the final norm: [..., K + 1, H] -> [..., H].

        Shares of slots behind `steps` are dropped, not given away.
        """
        if self.shares is None:
            return hidden[..., -1, :]
        slot = torch.arange(hidden.shape[-2], device=hidden.device)
        shares = torch.where(slot <= steps.unsqueeze(-1), self.shares, 0.0)
        return (hidden * shares.unsqueeze(-1)).sum(dim=-2).to(hidden.dtype)


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
            self.ponder["router"] = Decider(hidden, hidden // 4, steps + 1)
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
        """Refuse another vocabulary."""
        raise NotImplementedError(
            "the vocabulary of a MegaPonder model is fixed; convert it with another one"
        )

    # ---- one batch of tokens ----

    def _consume(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        cache: PonderCache | None,
        num_sweeps: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Think about tokens, [B, T], and return what the head reads, [B, T, H], and their steps, [B, T].

        Padding is moved behind the tokens first, where causal attention never sees it, and what came out is
        moved back.
        """
        is_token = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            is_token = attention_mask[:, -input_ids.shape[1] :].bool()
        order = kept_first(is_token)
        real = is_token.gather(1, order)
        positions = torch.arange(order.shape[1], device=order.device).expand_as(order)
        if cache is not None:
            if not bool(is_token[:, -1].all()):
                raise ValueError(
                    "prompts that are continued must be padded on the left, but the last column has padding; "
                    "set tokenizer.padding_side = 'left'"
                )
            cache.begin(input_ids)
            positions = positions + cache.num_tokens.unsqueeze(1)
        embeddings = self._embed(input_ids.gather(1, order))
        hidden, steps = self._think(embeddings, real, positions, cache, num_sweeps)
        hidden = put_back(hidden * real.unsqueeze(-1), order, input_ids.shape[1])
        steps = put_back((steps * real).unsqueeze(-1), order, input_ids.shape[1]).squeeze(-1)
        if cache is not None:
            cache.num_tokens = cache.num_tokens + real.sum(dim=1)
            cache.steps = torch.cat([cache.steps, steps], dim=1)
        return hidden, steps

    def _think(
        self,
        embeddings: Tensor,
        real: Tensor,
        positions: Tensor,
        cache: PonderCache | None,
        num_sweeps: int | None,
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.method in ("loop", "ponderlm", "adaponderlm"):
            return self._iterate(embeddings, real, positions, cache)
        if config.method in ("vanilla", "pause"):
            return self._pause(embeddings, real, positions, cache)
        if cache is None:
            num_sweeps = config.num_jacobi_iterations if num_sweeps is None else num_sweeps
        elif embeddings.shape[1] == 1 and bool(real.all()):
            return self._decode(embeddings.squeeze(1), positions, cache)
        else:
            num_sweeps = config.prefill_sweeps
        return self._sweep(embeddings, real, positions, cache, num_sweeps)

    # ---- slots: pause, ponderlm2, ponderlm3 ----

    def _pause(
        self, embeddings: Tensor, real: Tensor, positions: Tensor, cache: PonderCache | None
    ) -> tuple[Tensor, Tensor]:
        """All slots are known beforehand and run at once; the last one is read."""
        num_pauses = self.config.num_latent_thoughts
        slots = embeddings.unsqueeze(2)
        if num_pauses:
            pause = torch.full_like(positions, self.config.pause_token_id).unsqueeze(2)
            slots = torch.cat([slots, self._embed(pause.expand(-1, -1, num_pauses))], dim=2)
        keep = real.unsqueeze(2).expand(slots.shape[:3])
        everyone = torch.arange(len(slots), device=slots.device)
        hidden = self._run_slots(slots, keep, positions, everyone, cache)
        if cache is not None:
            cache.num_rows = cache.num_rows + keep.sum(dim=(1, 2))
        return hidden[:, :, -1], torch.full_like(positions, num_pauses)

    def _sweep(
        self,
        embeddings: Tensor,
        real: Tensor,
        positions: Tensor,
        cache: PonderCache | None,
        num_sweeps: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Jacobi iteration: every pass runs all current slots and then makes all thoughts anew, at once.

        A token has one slot more in every pass until it has all that it takes: K + 1 in training, in decoding
        those that are not pruned. With a fixed number of sweeps there are K + num_sweeps + 1 passes; without,
        a sequence is swept until its steps stand and its thoughts and log weights do not move any more.
        """
        num_thoughts, prunes = self.config.num_latent_thoughts, cache is not None
        slot = torch.arange(num_thoughts + 1, device=embeddings.device)
        live = torch.arange(len(embeddings), device=embeddings.device)
        last = torch.zeros_like(positions)
        # [B, T, H] -> [B, T, K + 1, H]
        first = functional.pad(embeddings.unsqueeze(2), (0, 0, 0, num_thoughts))
        inputs, hidden = first, torch.zeros_like(first)
        log_weight = first.new_zeros(first.shape[:3], dtype=self._wide) if self._has_router else None
        # A token is exact K + 1 passes after all tokens before it are.
        limit = embeddings.shape[1] * (num_thoughts + 1) if num_sweeps is None else num_thoughts + num_sweeps
        for number in count():
            keep = (slot <= last.unsqueeze(-1)) & real.unsqueeze(-1)
            weight_of_live = None if log_weight is None else log_weight[live]
            ended = self._run_slots(
                inputs[live], keep[live], positions[live], live, cache, log_weight=weight_of_live
            )
            hidden = hidden.index_copy(0, live, ended)
            decision = self._decide(hidden[:, :, 0], prunes)
            steps = torch.minimum(decision.steps, last)
            if num_thoughts == 0 or number == limit:
                break
            before, before_last, before_weight = inputs, last, log_weight
            last = torch.minimum(decision.steps, last + 1)
            renewed = (slot > 0) & (slot <= last.unsqueeze(-1)) & real.unsqueeze(-1)
            # Slot k of the next pass is made from slot k - 1 of this one.
            inputs = first.clone()
            inputs[renewed] = self._next_thought(hidden[:, :, :-1][renewed[:, :, 1:]])
            log_weight = decision.log_weight
            if num_sweeps is None:
                grows = (last != before_last) | (decision.steps != last)
                moves = self._moves(inputs, before, renewed, log_weight, before_weight)
                live = live[(moves | (grows & real).any(dim=1))[live]]
                if len(live) == 0:
                    break
        if cache is not None:
            cache.num_rows = cache.num_rows + keep.sum(dim=(1, 2))
        read = decision.read(hidden, steps)
        # Training weighs all slots, and reports the steps that decoding would take.
        return read, steps if prunes else self._decide(hidden[:, :, 0], prunes=True).steps

    def _moves(
        self, new: Tensor, old: Tensor, renewed: Tensor, log_weight: Tensor | None, old_weight: Tensor | None
    ) -> Tensor:
        """Whether the thoughts or log weights of a sequence moved by more than the tolerance, [B]."""
        tolerance = self.config.prefill_tolerance
        if tolerance is None:
            tolerance = max(1e-5, torch.finfo(new.dtype).eps)
        change, norm = (
            (x.to(self._wide) * renewed.unsqueeze(-1)).square().sum(dim=(1, 2, 3)) for x in (new - old, new)
        )
        moves: Tensor = change > tolerance**2 * norm
        if log_weight is not None and old_weight is not None:
            moves = moves | (((log_weight - old_weight).abs() * renewed).amax(dim=(1, 2)) > tolerance)
        return moves

    def _decode(self, embeddings: Tensor, positions: Tensor, cache: PonderCache) -> tuple[Tensor, Tensor]:
        """Think about one token of each sequence, [B, H]: slot after slot, of the tokens that take it."""
        hidden = functional.pad(embeddings.unsqueeze(1), (0, 0, 0, self.config.num_latent_thoughts))
        thoughts, active = embeddings, torch.arange(len(embeddings), device=embeddings.device)
        decision = None
        for step in range(hidden.shape[1]):
            weight = embeddings.new_zeros(len(active), 1, dtype=self._wide) if self._has_router else None
            if decision is not None:
                active = (decision.steps >= step).nonzero().flatten()
                if len(active) == 0:
                    break
                thoughts = self._next_thought(hidden[active, step - 1])
                weight = None if decision.log_weight is None else decision.log_weight[active, step, None]
            rows = Rows(positions[active], active, cache, log_weight=weight)
            hidden[active, step] = self._run(thoughts.unsqueeze(1), rows).squeeze(1)
            cache.num_rows = cache.num_rows.index_add(0, active, torch.ones_like(active))
            decision = decision or self._decide(hidden[:, 0], prunes=True)
        assert decision is not None
        return decision.read(hidden, decision.steps).unsqueeze(1), decision.steps.unsqueeze(1)

    def _decide(self, token_hidden: Tensor, prunes: bool) -> Decision:
        """Which steps tokens take, by their slot 0 after the final norm, [..., H]."""
        num_thoughts = self.config.num_latent_thoughts
        every = torch.full(token_hidden.shape[:-1], num_thoughts, device=token_hidden.device)
        if not self._has_router:
            return Decision(steps=every)
        shares = torch.softmax(self.ponder["router"](token_hidden), dim=-1)
        # Summed from the end: 1 - cumsum loses all digits of a small tail.
        tail = shares[..., 1:].flip(-1).cumsum(-1).flip(-1)
        mass = torch.cat([torch.ones_like(shares[..., :1]), tail], dim=-1)
        steps = (tail >= self.config.pruning_threshold).sum(dim=-1)
        log_weight = mass.clamp_min(SMALLEST_TAIL_MASS).log()
        return Decision(steps=steps if prunes else every, log_weight=log_weight, shares=shares)

    # ---- iterations: loop, ponderlm, adaponderlm ----

    def _iterate(
        self, embeddings: Tensor, real: Tensor, positions: Tensor, cache: PonderCache | None
    ) -> tuple[Tensor, Tensor]:
        """Run the row of each token again and again; a halted token keeps what its last iteration gave."""
        config, num_iterations = self.config, self.config.num_latent_thoughts
        everyone = torch.arange(len(embeddings), device=embeddings.device)
        first = embeddings * num_iterations if config.multiply_embedding else embeddings
        running, active, steps = first, real, torch.zeros_like(positions)
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        is_loop, halts = config.method == "loop", config.method == "adaponderlm"
        # A loop has its one final norm at the end.
        rows = Rows(positions, everyone, cache, last_version=kept)
        hidden = self._run(running, rows, normalize=not is_loop or num_iterations == 0)
        for iteration in range(1, num_iterations + 1):
            going_on, share = everyone, None
            if halts:
                share = torch.sigmoid(self.ponder.get_submodule(f"gates.{iteration - 1}")(hidden)).squeeze(-1)
                active = active & (share >= config.pruning_threshold)
                share = share * active
            if halts and cache is not None:
                going_on, halted = (x.nonzero().flatten() for x in (active.any(dim=1), ~active.any(dim=1)))
                if len(halted) > 0:
                    cache.repeat(iteration, Rows(positions[halted], halted, cache))
            if len(going_on) == 0:
                continue
            answer = hidden[going_on] if is_loop else self._next_thought(hidden[going_on])
            if share is not None:
                answer = answer * share[going_on].unsqueeze(-1).to(answer.dtype)
            if not is_loop:
                answer = answer + (first if config.residual == "from_embedding" else running)[going_on]
            running = running.index_copy(0, going_on, answer)
            is_active = active[going_on] if halts else None
            rows = Rows(
                positions[going_on], going_on, cache, version=iteration, active=is_active, last_version=kept
            )
            ended = self._run(answer, rows, normalize=not is_loop or iteration == num_iterations)
            if is_active is not None:
                ended = torch.where(is_active.unsqueeze(-1), ended, hidden[going_on])
            hidden = hidden.index_copy(0, going_on, ended)
            steps = steps + active
        if cache is not None:
            cache.num_rows = cache.num_rows + real.sum(dim=1)
        return hidden, steps

    # ---- parts that all methods use ----

    @property
    def _has_router(self) -> bool:
        return "router" in self.ponder

    @property
    def _wide(self) -> torch.dtype:
        """Type of halting decisions: at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    def _embed(self, tokens: Tensor) -> Tensor:
        """[...] -> [..., H]."""
        embeddings: Tensor = self.get_input_embeddings()(tokens) * self.config.embedding_scale
        return embeddings

    def _head(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V]."""
        head = self.get_output_embeddings() or self.get_input_embeddings()
        return functional.linear(hidden, head.get_parameter("weight")[: self.config.vocab_size])

    def _next_thought(self, hidden: Tensor) -> Tensor:
        """What a step feeds back: its hidden state, or the mean embedding of what it predicts."""
        config = self.config
        if config.mixture == "hidden":
            return hidden
        logits = self._head(hidden).to(self._wide) / config.softmax_temperature
        if config.mixture == "top_k":
            smallest = logits.detach().topk(config.mixture_top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < smallest, float("-inf"))
        embeddings = self.get_input_embeddings().get_parameter("weight")[: config.vocab_size]
        mixed = torch.softmax(logits, dim=-1).to(embeddings.dtype) @ embeddings
        return (mixed * float(config.embedding_scale)).to(hidden.dtype)

    def _run(self, hidden: Tensor, rows: Rows, normalize: bool = True) -> Tensor:
        """Run rows through all layers, [N, Q, H] -> [N, Q, H]."""
        base, _, norm, _ = BACKBONES[self.config.backbone][1]
        rotate = Rotation(rows.positions, self.config, hidden.dtype)
        for layer in self.get_submodule(f"{base}.layers").children():
            hidden = layer(hidden, rotate, rows)
        if normalize:
            hidden = self.get_submodule(f"{base}.{norm}")(hidden)
        return hidden

    def _run_slots(
        self,
        slots: Tensor,
        keep: Tensor,
        positions: Tensor,
        sequences: Tensor,
        cache: PonderCache | None,
        log_weight: Tensor | None = None,
    ) -> Tensor:
        """Run the slots that are kept, in the order of tokens and slots, and no others.

        Args:
            slots: [N, T, n, H].
            keep: which slots, [N, T, n].
            positions: of the tokens, [N, T].
            sequences: which sequences of the batch, [N].
            cache: where the rows are stored.
            log_weight: of the keys of the slots, [N, T, n].
        Returns:
            [N, T, n, H], 0 where a slot did not run.
        """
        num_slots = slots.shape[2]
        order = kept_first(keep.flatten(1))
        positions = positions.repeat_interleave(num_slots, dim=1).gather(1, order)
        weight = None if log_weight is None else log_weight.flatten(1).gather(1, order)
        chosen = slots.flatten(1, 2).gather(1, order.unsqueeze(-1).expand(-1, -1, slots.shape[-1]))
        hidden = self._run(chosen, Rows(positions, sequences, cache, log_weight=weight))
        whole: Tensor = put_back(hidden, order, keep[0].numel()).unflatten(1, (-1, num_slots))
        return whole * keep.unsqueeze(-1)

    def _validate_generation_mode(self, generation_mode: GenerationMode, *others: Any) -> None:
        """Refuse what reorders a cache or takes tokens back: its sequences own different numbers of rows.

        Raises:
            ValueError: naming the way to generate.
        """
        known = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
        if generation_mode not in known:
            raise ValueError(
                "a MegaPonder model must generate by greedy_search or sample, but is asked for "
                f"{generation_mode.value}; leave out num_beams, assistant_model and the like"
            )
        super()._validate_generation_mode(generation_mode, *others)

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *sizes: Any
    ) -> None:
        """Give `generate` a cache of our own kind.

        Raises:
            ValueError: another kind is asked for.
        """
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                "cache_implementation must be left out, as pondering needs a cache of its own, but is "
                f"{generation_config.cache_implementation!r}"
            )
        given = model_kwargs.get("past_key_values")
        if not isinstance(given, PonderCache | None):
            raise ValueError(f"past_key_values must be a PonderCache, but is a {type(given).__name__}")
        if given is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = PonderCache()


def kept_first(keep: Tensor) -> Tensor:
    """Return the order that brings kept columns to the front, [B, C] bool -> [B, most kept of a row] indices.

    Where a row keeps fewer than another, others of its columns fill the end.
    """
    order = keep.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : int(keep.sum(dim=1).max())]


def put_back(values: Tensor, order: Tensor, num_columns: int) -> Tensor:
    """Undo an order, [B, Q, H] -> [B, C, H], with 0 in columns that it left out."""
    whole = values.new_zeros(len(values), num_columns, values.shape[-1])
    return whole.scatter(1, order.unsqueeze(-1).expand_as(values), values)
