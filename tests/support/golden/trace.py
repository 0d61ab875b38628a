"""Observations of the decoder for one token of each of B sequences, in the layouts of the golden files.

M = tokens consumed, K = extra steps, H = hidden size, R = rows a sequence keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from megatron_ext.ponder.config import Method

GATE = "gate_logits/"


@dataclass(slots=True, kw_only=True)
class TokenTrace:
    """Observations of one call of :meth:`megatron_ext.decoding.BatchDecoder.consume`.

    Attributes:
        last: the latest value by name.
        of_rows: all values of the names under ``rows/``, in the order of the calls.
        steps: extra steps of the tokens, [B].
        rows_kept: number of rows in the store afterwards, [B].
    """

    last: dict[str, Tensor] = field(default_factory=dict)
    of_rows: dict[str, list[Tensor]] = field(default_factory=dict)
    steps: Tensor = field(default_factory=lambda: torch.empty(0))
    rows_kept: Tensor = field(default_factory=lambda: torch.empty(0))

    def observe(self, name: str, value: Tensor) -> None:
        """See :class:`megatron_ext.decoding.BatchDecoder`."""
        self.last[name] = value
        if name.startswith("rows/"):
            self.of_rows.setdefault(name, []).append(value)

    @property
    def num_rows(self) -> Tensor:
        """Number of rows that ran through the layers, [B]."""
        return torch.cat(self.of_rows["rows/sequences"]).bincount(minlength=len(self.steps)).cpu()


def thought_outputs(traces: Sequence[TokenTrace]) -> dict[str, Tensor]:
    """Return the outputs of tokens that all take K thoughts."""
    entered = [torch.cat(trace.of_rows["rows/entered"][1:]) for trace in traces]
    positions = [torch.stack(trace.of_rows["rows/positions"]) for trace in traces]
    return {
        "decode_thoughts": torch.stack(entered),
        "decode_last_hidden": torch.cat([trace.last["hidden"] for trace in traces]),
        # Each is [K + 1, B] and equal for all sequences.
        "decode_position_ids": torch.stack([of_token[:, 0] for of_token in positions]),
    }


def halting_outputs(method: Method, traces: Sequence[TokenTrace]) -> dict[str, Tensor]:
    """Return the outputs of tokens that halt."""
    rows = torch.stack([trace.num_rows for trace in traces], dim=1)
    steps = torch.stack([trace.steps for trace in traces], dim=1)
    hidden = torch.cat([trace.last["hidden"] for trace in traces]).transpose(0, 1)
    if method is Method.ADAPONDERLM:
        # Repeated versions are stored once.
        kept = {"token_active_iterations": steps, "token_hidden": hidden, "cache_rows": rows.cumsum(dim=1)}
        return kept | _gates(traces) | {"token_rows": rows}
    first = torch.cat([trace.of_rows["rows/left"][0] for trace in traces]).transpose(0, 1)
    return _cache(traces) | {
        "token_steps": steps,
        "token_rows": rows,
        "token_mixed_hidden": hidden,
        "token_slot0_hidden": first,
        "token_s": torch.stack([trace.last["s"] for trace in traces], dim=1),
        "token_tail_mass": torch.stack([trace.last["tail_mass"] for trace in traces], dim=1),
        "cache_rows": torch.stack([trace.rows_kept for trace in traces], dim=1),
    }


def _gates(traces: Sequence[TokenTrace]) -> dict[str, Tensor]:
    """Return gate logits where a gate was computed, else 0: [B, M, K]."""
    num_gates = max(len([name for name in trace.last if name.startswith(GATE)]) for trace in traces)
    shape = (len(traces[0].steps), len(traces), num_gates)
    logits = torch.zeros(shape, dtype=traces[0].last[f"{GATE}0"].dtype)
    computed = torch.zeros(shape, dtype=torch.int64)
    for position, trace in enumerate(traces):
        for gate in range(num_gates):
            if f"{GATE}{gate}" in trace.last:
                tokens, values = trace.last[f"{GATE}{gate}"].cpu()
                logits[tokens.long(), position, gate] = values
                computed[tokens.long(), position, gate] = 1
    return {"gate_logits": logits, "gate_computed": computed}


def _cache(traces: Sequence[TokenTrace]) -> dict[str, Tensor]:
    """Return token, slot and log weight of each row of the store, [B, R]."""
    num_sequences = len(traces[0].steps)
    kept: list[list[tuple[float, float, float]]] = [[] for _ in range(num_sequences)]
    for token, trace in enumerate(traces):
        slots = [0] * num_sequences
        sequences = torch.cat(trace.of_rows["rows/sequences"]).tolist()
        weights = torch.cat(trace.of_rows["rows/log_weight"]).tolist()
        for sequence, weight in zip(sequences, weights, strict=True):
            kept[sequence].append((token, slots[sequence], weight))
            slots[sequence] += 1
    rows = [torch.tensor(of_sequence, dtype=torch.float64) for of_sequence in kept]
    filled = pad_sequence(rows, batch_first=True, padding_value=-1.0)
    is_row = filled[..., 0] >= 0
    return {
        "cache_row_token": filled[..., 0].long(),
        "cache_row_slot": filled[..., 1].long(),
        "cache_row_log_w": torch.where(is_row, filled[..., 2], 0.0),
    }
