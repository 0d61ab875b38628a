"""Left-to-right decoding with hard pruning: a token runs only the slots it needs (definitions 2.5).

Slot 0 of a token runs against the rows before it; its hidden state decides how many further slots run; a
pruned slot is never computed and leaves no key and no value. Nothing needs the future, so this is exact.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.host import device
from megatron_ext.model import PonderModel
from megatron_ext.ponder.halting import mix_steps


class RowStore:
    """Keys, values and log weights of the rows of one sequence, allocated once.

    Implements :class:`megatron_ext.attention.KeyValueStore`.
    """

    def __init__(self, model: PonderModel, capacity: int) -> None:
        """Reserve room.

        Args:
            model: read for its sizes.
            capacity: rows, at most ``tokens * (K + 1)``.
        """
        config = model.config
        groups = max(config.num_query_groups // model.axis.size, 1)
        shape = (config.num_layers, capacity, 1, groups, config.kv_channels)
        self._keys = torch.empty(shape, dtype=config.params_dtype, device=device())
        self._values = torch.empty_like(self._keys)
        weight_dtype = torch.promote_types(config.params_dtype, torch.float32)
        self._log_weights = torch.empty((1, capacity), dtype=weight_dtype, device=device())
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
        if stop > self._keys.shape[1]:
            raise IndexError(f"a store of {self._keys.shape[1]} rows cannot take row {stop}")
        keys, values = self._keys[layer_number - 1], self._values[layer_number - 1]
        keys[start:stop], values[start:stop] = key, value
        self._log_weights[:, start:stop] = log_weight
        return keys[:stop], values[:stop], self._log_weights[:, :stop]

    def advance(self) -> None:
        """Keep the row that all layers have just put."""
        self.num_rows += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedToken:
    """What consuming one token gave.

    Attributes:
        logits: [V], predicting the next token, on every rank; without padding rows.
        steps: slots that ran beside slot 0.
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
        self.store = RowStore(model, max_tokens * model.config.ponder.num_slots)

    @torch.no_grad()
    def consume(self, token: int) -> DecodedToken:
        """Run one token through as many slots as it needs.

        Args:
            token: id of the next token of the sequence.
        """
        model = self._model
        position = torch.tensor([[self._num_tokens]], device=device())
        embedding = model.embed(torch.tensor([[token]], device=device()))
        hidden = [self._run_slot(embedding, position, torch.zeros((1, 1), device=device()))]
        halting = model.ponder.halt(hidden[0])
        for log_weight in halting.log_weights.unbind():
            thought = model.ponder.next_thought(hidden[-1], model.mix_embeddings)
            hidden.append(self._run_slot(thought, position, log_weight.reshape(1, 1)))
        self._num_tokens += 1
        # k + 1 times [1, 1, H] -> [1, k + 1, 1, H] -> [1, 1, H]
        read = mix_steps(torch.stack(hidden, dim=1), halting.shares.reshape(1, -1, 1))
        logits = model.axis.gather_last_dim(model.logits(read))
        return DecodedToken(logits=logits[0, 0, : model.config.vocab_size], steps=len(hidden) - 1)

    def _run_slot(self, row: Tensor, position: Tensor, log_weight: Tensor) -> Tensor:
        hidden = self._model.decode_slot(row, position, log_weight, self.store)
        self.store.advance()
        return hidden
