"""A tiny causal model in place of the layers, which runs rows as decoders do."""

import torch
from torch import Tensor

HIDDEN_SIZE = 6


class ToyRunner:
    """Runs rows of some tokens; each row mixes with the stored rows of its sequence, by their weights.

    Implements :class:`megatron_ext.ponder.decode.think.RowRunner`.

    Attributes:
        calls: tokens of the rows of each call.
    """

    def __init__(self, sequences: list[int], *, replaces: bool = False, iterates: bool = False) -> None:
        generator = torch.Generator().manual_seed(7)
        shape = (2, HIDDEN_SIZE, HIDDEN_SIZE)
        self.own, self.others = 0.5 * torch.randn(shape, dtype=torch.float64, generator=generator)
        self.own.requires_grad_()
        self._sequences, self._replaces, self._iterates = sequences, replaces, iterates
        self._stored: dict[tuple[int, int], list[Tensor]] = {}
        self.calls: list[list[int]] = []

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
        chosen = list(range(rows.shape[1])) if tokens is None else tokens.tolist()
        self.calls.append(chosen)
        if self._replaces and places is None:
            for token in chosen:
                self._stored.pop((self._sequences[token], 0), None)
        outputs = []
        for index, token in enumerate(chosen):
            row = rows[0, index]
            weight = torch.ones(()) if log_weight is None else log_weight[index].exp()
            key = (self._sequences[token], version if self._iterates else 0)
            stored = self._stored.setdefault(key, [])
            place = len(stored) if places is None else int(places[index])
            stored[place : place + 1] = [row * weight]
            seen = torch.stack(stored[: place + 1]).sum(dim=0)
            outputs.append(torch.tanh(row @ self.own + seen @ self.others))
        hidden = torch.stack(outputs).unsqueeze(0)
        return hidden if normalize else 2 * hidden


def toy_tokens(num_tokens: int, *, seed: int = 0) -> Tensor:
    """Embeddings, [N, H] in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, HIDDEN_SIZE, dtype=torch.float64, generator=generator)
