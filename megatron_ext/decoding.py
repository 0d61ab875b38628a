"""Left-to-right decoding: a token runs only the steps it needs (definitions 2.5, 3.2).

The method says which rows of a token run; each runs against the stored rows of earlier tokens. A pruned slot
is never computed and leaves no key and no value, a halted token is not run again. Nothing needs the future,
so this is exact.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.attention import RowContext
from megatron_ext.host import device
from megatron_ext.model import PonderModel


class RowStore:
    """Keys, values and log weights of the rows of one sequence, allocated once.

    A method that iterates over the same row keeps one version per iteration: iteration i of a token reads
    version i of every earlier token, which for a token that halted before is that of its last iteration
    (definitions 3.2). Other methods have a single version. Implements
    :class:`megatron_ext.attention.KeyValueStore`.
    """

    def __init__(self, model: PonderModel, capacity: int, num_versions: int = 1) -> None:
        """Reserve room.

        Args:
            model: read for its sizes.
            capacity: rows.
            num_versions: versions of each row.
        """
        config = model.config
        groups = max(config.num_query_groups // model.axis.size, 1)
        shape = (num_versions, config.num_layers, capacity, 1, groups, config.kv_channels)
        self._keys = torch.empty(shape, dtype=config.params_dtype, device=device())
        self._values = torch.empty_like(self._keys)
        self.weight_dtype = torch.promote_types(config.params_dtype, torch.float32)
        self._log_weights = torch.empty((1, capacity), dtype=self.weight_dtype, device=device())
        self.version = 0
        self.num_rows = 0

    def extend(
        self, layer_number: int, key: Tensor, value: Tensor, log_weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put one row behind those of a layer; see :class:`megatron_ext.attention.KeyValueStore`.

        The row counts once :meth:`advance` is called, after all layers have put theirs.

        Raises:
            IndexError: the store is full.
        """
        start, stop = self.num_rows, self.num_rows + key.shape[0]
        capacity = self._log_weights.shape[1]
        if stop > capacity:
            raise IndexError(f"a store of {capacity} rows cannot take row {stop}")
        keys = self._keys[self.version, layer_number - 1]
        values = self._values[self.version, layer_number - 1]
        keys[start:stop], values[start:stop] = key, value
        self._log_weights[:, start:stop] = log_weight
        return keys[:stop], values[:stop], self._log_weights[:, :stop]

    def advance(self) -> None:
        """Keep the row that all layers have just put; versions it has not reached repeat its last one."""
        for stored in (self._keys, self._values):
            stored[self.version + 1 :, :, self.num_rows] = stored[self.version, :, self.num_rows]
        self.version = 0
        self.num_rows += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedToken:
    """What consuming one token gave.

    Attributes:
        logits: [V], predicting the next token, on every rank; without padding rows.
        steps: extra steps that ran.
    """

    logits: Tensor
    steps: int


class TokenDecoder:
    """Consumes the tokens of one sequence, one after another."""

    def __init__(self, model: PonderModel, max_tokens: int) -> None:
        """Start an empty sequence.

        Args:
            model: in evaluation mode, without sequence parallelism.
            max_tokens: how many tokens may be consumed.
        """
        self._model = model
        self._num_tokens = 0
        num_slots = model.config.ponder.num_slots
        if model.ponder.iterates:
            self.store = RowStore(model, max_tokens, num_versions=num_slots)
        else:
            self.store = RowStore(model, max_tokens * num_slots)

    @torch.no_grad()
    def consume(self, token: int) -> DecodedToken:
        """Run one token through as many steps as it needs.

        Args:
            token: id of the next token of the sequence.
        """
        model = self._model
        tokens = model.ponder.tokens_of_rows(torch.tensor([[token]], device=device()))
        thought = model.ponder.think(model.embed(tokens), self._run_row, model.mix_embeddings)
        if model.ponder.iterates:
            self.store.advance()
        self._num_tokens += 1
        logits = model.axis.gather_last_dim(model.logits(thought.hidden))
        return DecodedToken(logits=logits[0, 0, : model.config.vocab_size], steps=thought.steps)

    def _run_row(
        self, row: Tensor, *, log_weight: float = 0.0, version: int = 0, normalize: bool = True
    ) -> Tensor:
        """See :class:`megatron_ext.methods.base.RowRunner`."""
        model = self._model
        self.store.version = version
        hidden = model.run_layers(
            row,
            torch.tensor([[self._num_tokens]], device=device()),
            log_weight=torch.full((1, 1), log_weight, dtype=self.store.weight_dtype, device=device()),
            context=RowContext(store=self.store),
        )
        if not model.ponder.iterates:
            self.store.advance()
        return model.final_norm(hidden) if normalize else hidden
