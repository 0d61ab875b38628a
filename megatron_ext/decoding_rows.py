"""Calls of the layers in decoding: the next row of every sequence, or all rows of prompts.

R = rows of a call, N = tokens, H = hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_ext.decoding_store import JoinedCalls, StoredCall, WholeRows
from megatron_ext.device import as_integers
from megatron_ext.ponder.decode.think import Ended, FedBack, Rows, Thinking

if TYPE_CHECKING:
    from megatron_ext.decoding import BatchDecoder


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedTokens:
    """Tokens that need no further row.

    Attributes:
        sequences: whose tokens they are, R.
        hidden: [1, R, H], goes to the head.
        steps: extra steps that each of them took.
    """

    sequences: list[int]
    hidden: Tensor
    steps: int


@dataclass(slots=True)
class _Group:
    """Tokens that were begun together, and what they need next.

    Attributes:
        sequences, positions: of each token, N.
        thinking: about all of them.
        need: the rows or the feedback that some of them need; None when all have ended.
        ended: those that have ended since they were last taken.
    """

    sequences: Sequence[int]
    positions: Sequence[int]
    thinking: Thinking
    need: Rows | FedBack | None = None
    ended: list[EndedTokens] = field(default_factory=list)

    def resume(self, answer: Tensor | None) -> None:
        """Think until rows or feedback are needed, or all tokens have ended."""
        try:
            request = next(self.thinking) if answer is None else self.thinking.send(answer)
            while isinstance(request, Ended):
                self.ended.append(self._ended(request))
                request = self.thinking.send(request.hidden)
            self.need = request
        except StopIteration:
            self.need = None

    def _ended(self, request: Ended) -> EndedTokens:
        chosen = chosen_tokens(request.tokens, len(self.sequences))
        sequences = [self.sequences[token] for token in chosen]
        return EndedTokens(sequences=sequences, hidden=request.hidden, steps=request.steps)


class RowByRow:
    """Runs one token of each of some sequences, all of which take their next row in every call of the layers.

    Tokens that are begun together are thought about together. As all take a row in every call, groups that
    were begun between different calls are at different steps, and there are at most K + 1 of them.
    """

    def __init__(self, decoder: BatchDecoder) -> None:
        """Start without tokens."""
        self._decoder = decoder
        self._groups: list[_Group] = []
        self._busy: set[int] = set()

    @property
    def sequences(self) -> frozenset[int]:
        """Those with a token that has not ended."""
        return frozenset(self._busy)

    def begin(self, sequences: Sequence[int], tokens: Sequence[int]) -> None:
        """Begin the next token of some sequences, of which none may be busy."""
        assert not self._busy.intersection(sequences), "the token before has to end first"
        decoder = self._decoder
        # [N] -> [N, n] -> [n, N, H]
        rows = decoder.embedded(as_integers(tokens).unsqueeze(1))
        positions = [decoder.num_tokens[sequence] for sequence in sequences]
        group = _Group(list(sequences), positions, decoder.think(rows))
        group.resume(None)
        self._groups.append(group)
        self._busy.update(sequences)
        self._feed_back()

    def advance(self) -> list[EndedTokens]:
        """Run the next row of every token that has not ended; return the tokens that end with it."""
        groups = self._groups
        for group, hidden in zip(groups, self._run(groups), strict=True):
            group.resume(hidden)
        self._feed_back()
        ended = [one for group in groups for one in group.ended]
        for group in groups:
            group.ended.clear()
        self._groups = [group for group in groups if group.need is not None]
        for one in ended:
            self._busy.difference_update(one.sequences)
            for sequence in one.sequences:
                self._decoder.num_tokens[sequence] += 1
        return ended

    def _feed_back(self) -> None:
        """Answer all that needs feedback, equal functions once, until only rows are needed."""
        while needs := [(group, group.need) for group in self._groups if isinstance(group.need, FedBack)]:
            make: Callable[[Tensor], Tensor] = needs[0][1].make
            alike = [(group, need.hidden) for group, need in needs if need.make == make]
            sizes = [hidden.shape[1] for _, hidden in alike]
            answers = make(_joined([hidden for _, hidden in alike])).split(sizes, dim=1)
            for (group, _), answer in zip(alike, answers, strict=True):
                group.resume(answer)

    def _run(self, groups: Sequence[_Group]) -> Iterator[Tensor]:
        """Run the rows that all groups need in one call; yield the hidden states of each, [1, R, H]."""
        decoder = self._decoder
        needs = [group.need for group in groups if isinstance(group.need, Rows)]
        assert len(needs) == len(groups), "only rows are needed between calls"
        call = _Call(decoder, groups, needs)
        hidden = call.run()
        sizes = [need.rows.shape[1] for need in needs]
        normalizes = {need.normalize for need in needs}
        if normalizes == {True}:
            hidden = decoder.final_norm(hidden)
        if len(normalizes) == 1:
            decoder.observe("rows/left", hidden)
            yield from call.in_order_of_groups(hidden).split(sizes, dim=1)
            return
        parts = call.in_order_of_groups(hidden).split(sizes, dim=1)
        for need, part in zip(needs, parts, strict=True):
            yield decoder.final_norm(part) if need.normalize else part


class _Call:
    """The rows of several groups in one call of the layers, in the order of versions and sequences.

    In this order, rows of neighbouring sequences attend together whatever group they belong to.
    """

    def __init__(self, decoder: BatchDecoder, groups: Sequence[_Group], needs: Sequence[Rows]) -> None:
        self._decoder, self._needs = decoder, needs
        rows: list[tuple[int, int, int]] = []
        for group, need in zip(groups, needs, strict=True):
            for token in chosen_tokens(need.tokens, len(group.sequences)):
                rows.append((need.version, group.sequences[token], group.positions[token]))
        order = sorted(range(len(rows)), key=rows.__getitem__)
        self._rows = [rows[index] for index in order]
        is_sorted = order == list(range(len(rows)))
        self._order = None if is_sorted else as_integers(order)
        inverse = sorted(range(len(order)), key=order.__getitem__)
        self._inverse = None if is_sorted else as_integers(inverse)

    def run(self) -> Tensor:
        """Run the rows, without the final norm: [1, R, H] in the order of the call."""
        needs = self._needs
        hidden, log_weight = _joined([need.rows for need in needs]), self._log_weight()
        if self._order is not None:
            hidden = hidden[:, self._order]
            log_weight = None if log_weight is None else log_weight[self._order]
        positions = [position for _, _, position in self._rows]
        return self._decoder.run_layers(hidden, positions, log_weight, self._stored())

    def in_order_of_groups(self, hidden: Tensor) -> Tensor:
        """Undo the order of the call, [1, R, H]."""
        return hidden if self._inverse is None else hidden[:, self._inverse]

    def _log_weight(self) -> Tensor | None:
        needs = self._needs
        dtypes = [need.log_weight.dtype for need in needs if need.log_weight is not None]
        if not dtypes:
            return None
        return torch.cat(
            [
                need.rows.new_zeros(need.rows.shape[1], dtype=dtypes[0])
                if need.log_weight is None
                else need.log_weight
                for need in needs
            ]
        )

    def _stored(self) -> StoredCall:
        store, iterates = self._decoder.store, self._decoder.iterates
        calls: list[StoredCall] = []
        for version, of_version in groupby(self._rows, key=lambda row: row[0]):
            rows = list(of_version)
            sequences = [sequence for _, sequence, _ in rows]
            places = [position if iterates else store.num_rows[sequence] for _, sequence, position in rows]
            calls.append(store.places(sequences, places, version=version))
        return calls[0] if len(calls) == 1 else JoinedCalls(calls)


class PromptRunner:
    """Runs rows of whole prompts. Implements :class:`megatron_ext.ponder.decode.think.RowRunner`.

    A token of an iterating method keeps its place in the sequence. Rows of other methods are stored in the
    order of tokens and slots, from the beginning of their sequence in every call; keys and values are stored
    once no later call replaces them, at the latest by :meth:`finish`.
    """

    def __init__(
        self,
        decoder: BatchDecoder,
        sequences: Sequence[int],
        positions: Sequence[int],
    ) -> None:
        """Take the sequence and the position of each of the N tokens."""
        self._decoder = decoder
        self._iterates = decoder.iterates
        self._sequences = sequences
        self._positions = positions
        self._draft: WholeRows | None = None

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
        """See :class:`megatron_ext.ponder.decode.think.RowRunner`."""
        decoder, store = self._decoder, self._decoder.store
        chosen = chosen_tokens(tokens, len(self._sequences))
        sequences = [self._sequences[token] for token in chosen]
        positions = [self._positions[token] for token in chosen]
        if places is not None:
            taken = places.tolist()
        else:
            taken = positions if self._iterates else list(self._next_places(sequences))
        stored = store.places(sequences, taken, version=version)
        self._replace_draft(stored)
        hidden = decoder.run_layers(rows, positions, log_weight, stored)
        hidden = decoder.final_norm(hidden) if normalize else hidden
        decoder.observe("rows/left", hidden)
        return hidden

    def finish(self) -> None:
        """Store what the last calls have left."""
        if self._draft is not None:
            self._draft.commit()
            self._draft = None

    def _replace_draft(self, stored: StoredCall) -> None:
        """Store rows of the calls before unless this one replaces them: not those of settled sequences."""
        if self._iterates or not isinstance(stored, WholeRows):
            self.finish()
            return
        if self._draft is not None:
            self._draft.commit(replaced={*stored.sequences.tolist()})
        stored.is_draft = True
        self._draft = stored

    def _next_places(self, sequences: Sequence[int]) -> Iterator[int]:
        self._decoder.store.forget(sequences)
        taken: dict[int, int] = {}
        for sequence in sequences:
            place = taken.get(sequence, self._decoder.store.num_rows[sequence])
            taken[sequence] = place + 1
            yield place


def chosen_tokens(tokens: Tensor | None, num_tokens: int) -> list[int]:
    """Return the numbers of some of N tokens; None is all."""
    chosen: list[int] = list(range(num_tokens)) if tokens is None else tokens.tolist()
    return chosen


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Put rows side by side, [1, R, H]."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
