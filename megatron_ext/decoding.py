"""Decoding of many sequences: a token runs only the steps it needs (definitions 2.5, 3.2).

The method decides which rows of a token run; each runs against the stored rows of earlier tokens. A call of
the layers takes the next row of every sequence, whatever its slot or iteration, and no others: a sequence
whose token has halted continues with its next token while others finish theirs, so that calls per token
follow the mean of the steps. A pruned slot is never computed and leaves no key and no value; a halted token
does not run again.

B = sequences, N = tokens of a call, H = hidden size, V = vocabulary.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from megatron_ext.decoding_rows import EndedTokens, PromptRunner, RowByRow
from megatron_ext.decoding_steps import StepStore
from megatron_ext.decoding_store import RowStore, StoredCall
from megatron_ext.device import as_integers
from megatron_ext.methods.base import Column
from megatron_ext.model.attention import RowContext
from megatron_ext.model.model import PonderModel
from megatron_ext.ponder.decode.signals import SignalHalting, prediction_signal
from megatron_ext.ponder.decode.sweeps import PromptTokens, Sweeps
from megatron_ext.ponder.decode.think import Observer, Thinking, Thought, ignore
from megatron_ext.ponder.step_limits import UNLIMITED, HaltingSignal, StepLimits

# The head runs on this many tokens of a prompt at once: the logits of all of them may not fit in memory.
TOKENS_PER_HEAD_CALL = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedTokens:
    """The result of consuming one token of each of some sequences.

    Attributes:
        sequences: which, N.
        logits: [N, V], predicting the next token of each, on every rank; without padding rows.
        steps: extra steps that ran, [N].
    """

    sequences: list[int]
    logits: Tensor
    steps: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPrompt:
    """The result of reading one prompt of S tokens.

    Attributes:
        logits: [V], predicting the token after the prompt.
        steps: extra steps that ran, [S].
    """

    logits: Tensor
    steps: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPrompt(ReadPrompt):
    """The same with what the model predicted within the prompt.

    Attributes:
        nll: loss in nats of the second to the last token, [S - 1].
        most_likely: the most likely token at each of their places, [S - 1].
    """

    nll: Tensor
    most_likely: Tensor


class BatchDecoder:
    """Consumes the tokens of B sequences; any of them may pause, end or start over at any time.

    It returns inference tensors, which have no gradients.

    Attributes:
        store: keys and values of all rows that ran.
        num_tokens: consumed so far, by sequence.
        dtype: of the weights.
        halting: how tokens halt by a signal; None where the limits have none.
        iterates: whether a token keeps its place and has versions there.
        observe: called with the name and value of intermediate results of the tokens that are consumed.
    """

    def __init__(
        self,
        model: PonderModel,
        *,
        num_sequences: int,
        max_tokens: int,
        limits: StepLimits = UNLIMITED,
    ) -> None:
        """Start with empty sequences.

        Args:
            model: in evaluation mode, without sequence parallelism, context axis and pipeline stages.
            num_sequences: B.
            max_tokens: how many tokens of a sequence may be consumed.
            limits: on the steps that tokens take.
        """
        assert model.context_axis.size == 1, "tokens of one sequence are consumed one after another"
        self._model = model
        self._method = model.ponder.under(limits)
        self.halting: SignalHalting | None = None
        if limits.signal is not None:
            self.halting = self._method.halting = self._halting(limits.signal, limits.threshold)
        self.iterates = self._method.iterates
        self.store = self._reserve(num_sequences, max_tokens)
        self.num_tokens = [0] * num_sequences
        self.dtype = model.config.params_dtype
        # Of all positions that there can be: [2, positions, 1, 1, rotary size / 2]
        self._turns = model.turns(as_integers(range(max_tokens)).unsqueeze(0))
        self.observe: Observer = ignore
        # Weak: in a cycle of references the store would outlive the decoder.
        self._running = RowByRow(weakref.proxy(self))

    def _reserve(self, num_sequences: int, max_tokens: int) -> RowStore:
        method, num_slots = self._method, self._method.config.num_slots
        if method.facts.sees_earlier_steps:
            return StepStore(
                self._model, num_sequences=num_sequences, capacity=max_tokens, num_steps=num_slots
            )
        return RowStore(
            self._model,
            num_sequences=num_sequences,
            capacity=max_tokens if self.iterates else max_tokens * num_slots,
            num_versions=num_slots if self.iterates else 1,
            has_weights=method.column is Column.LOG_WEIGHT,
        )

    @property
    def busy(self) -> frozenset[int]:
        """The sequences with a token that was begun and has not ended."""
        return self._running.sequences

    @torch.inference_mode()
    def begin(self, sequences: Sequence[int], tokens: Sequence[int]) -> None:
        """Begin the next token of some sequences; :meth:`advance` runs its rows.

        Args:
            sequences: which; every one at most once, and none that is busy.
            tokens: the next token of each.
        """
        self._running.begin(sequences, tokens)

    @torch.inference_mode()
    def advance(self) -> DecodedTokens | None:
        """Run the next row of every busy sequence, in one call of the layers.

        Returns:
            The tokens that ended with it; None where there are none.
        """
        ended = self._running.advance()
        return self._decoded(ended) if ended else None

    @torch.inference_mode()
    def consume(self, sequences: Sequence[int], tokens: Sequence[int]) -> DecodedTokens:
        """Run the next token of some sequences through as many steps as each needs, and wait for all of them.

        Args:
            sequences: which; every one at most once, and none that is busy.
            tokens: the next token of each.
        """
        assert not self.busy.intersection(sequences), "the token before has to end first"
        rounds = RowByRow(self)
        ended: list[EndedTokens] = []
        rounds.begin(sequences, tokens)
        while rounds.sequences:
            ended += rounds.advance()
        return self._decoded(ended, order=sequences)

    @torch.inference_mode()
    def follow(self, sequences: Sequence[int], texts: Sequence[Sequence[int]]) -> Iterator[DecodedTokens]:
        """Consume texts that are known in advance, row by row; yield tokens as they end.

        Args:
            sequences: which; every one at most once, and none that is busy.
            texts: the next tokens of each.
        """
        assert not self.busy.intersection(sequences), "the token before has to end first"
        rounds, free = RowByRow(self), list(sequences)
        rest = {sequence: iter(text) for sequence, text in zip(sequences, texts, strict=True)}
        while True:
            following = {one: token for one in free if (token := next(rest[one], None)) is not None}
            if following:
                rounds.begin(list(following), list(following.values()))
            if not rounds.sequences:
                return
            ended = rounds.advance()
            free = [sequence for one in ended for sequence in one.sequences]
            if ended:
                yield self._decoded(ended)

    def _decoded(self, ended: Sequence[EndedTokens], order: Sequence[int] | None = None) -> DecodedTokens:
        """Run the head once on all tokens that have ended, in the order of the sequences or as they came."""
        sequences = list(chain.from_iterable(one.sequences for one in ended))
        hidden = torch.cat([one.hidden for one in ended], dim=1)
        steps = list(chain.from_iterable([one.steps] * len(one.sequences) for one in ended))
        if order is not None and sequences != list(order):
            index = [sequences.index(sequence) for sequence in order]
            hidden, steps = hidden[:, as_integers(index)], [steps[place] for place in index]
            sequences = list(order)
        self.observe("hidden", hidden)
        return DecodedTokens(sequences=sequences, logits=self._logits(hidden), steps=as_integers(steps))

    @torch.inference_mode()
    def read_prompts(
        self, sequences: Sequence[int], prompts: Sequence[Sequence[int]], *, sweeps: Sweeps | None
    ) -> Sequence[ReadPrompt]:
        """Start some sequences over with prompts of any lengths.

        Args:
            sequences: which; their earlier tokens are forgotten.
            prompts: at least one token each.
            sweeps: reads all tokens of the prompts together, latent thoughts by Jacobi iteration; None reads
                token by token, which is exact for every method.
        Raises:
            ValueError: a prompt is empty.
        """
        self._start_over(sequences, prompts)
        if sweeps is None:
            return self._read_token_by_token(sequences, prompts)
        read = self._read_by_length(sequences, prompts, sweeps)
        logits = self._logits(torch.cat([hidden[:, -1:] for hidden, _ in read], dim=1))
        return [ReadPrompt(logits=own, steps=steps) for own, (_, steps) in zip(logits, read, strict=True)]

    @torch.inference_mode()
    def score_prompts(
        self, sequences: Sequence[int], prompts: Sequence[Sequence[int]], *, sweeps: Sweeps | None
    ) -> Sequence[ScoredPrompt]:
        """Read prompts as :meth:`read_prompts` does, and run the head on all of their tokens."""
        self._start_over(sequences, prompts)
        if sweeps is None:
            return self._read_token_by_token(sequences, prompts)
        read = self._read_by_length(sequences, prompts, sweeps)
        return [self._scored(prompt, *parts) for prompt, parts in zip(prompts, read, strict=True)]

    def _start_over(self, sequences: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        assert not self.busy.intersection(sequences), "a token of a sequence has to end before it starts over"
        if not all(prompts):
            raise ValueError("a prompt must have at least one token, but one is empty; write some text")
        self.store.forget(sequences)
        for sequence in sequences:
            self.num_tokens[sequence] = 0

    def _read_by_length(
        self, sequences: Sequence[int], prompts: Sequence[Sequence[int]], sweeps: Sweeps
    ) -> list[tuple[Tensor, Tensor]]:
        """Return hidden states, [1, S, H], and steps, [S], of each prompt."""
        # Prompts of one length run as one batch where they are neighbours.
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        ordered = [prompts[number] for number in order]
        thought = self._read_together([sequences[number] for number in order], ordered, sweeps)
        for sequence, prompt in zip(sequences, prompts, strict=True):
            self.num_tokens[sequence] = len(prompt)
        lengths = [len(prompt) for prompt in ordered]
        parts = zip(thought.hidden.split(lengths, dim=1), thought.steps.split(lengths), strict=True)
        by_number = dict(zip(order, parts, strict=True))
        return [by_number[number] for number in range(len(prompts))]

    def _read_token_by_token(
        self, sequences: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> list[ScoredPrompt]:
        reading = {
            sequence: _PromptReading(prompt) for sequence, prompt in zip(sequences, prompts, strict=True)
        }
        for decoded in self.follow(sequences, prompts):
            for sequence, *of_token in zip(decoded.sequences, decoded.logits, decoded.steps, strict=True):
                reading[sequence].take(*of_token)
        return [one.result() for one in reading.values()]

    def _read_together(
        self, sequences: Sequence[int], prompts: Sequence[Sequence[int]], sweeps: Sweeps
    ) -> Thought:
        model = self._model
        tokens = as_integers([token for prompt in prompts for token in prompt])
        # [1, N] -> [1, N * n] -> [N * n, 1, H] -> [1, N * n, H]
        rows = self.embedded(tokens.unsqueeze(0)).transpose(0, 1)
        numbers = [number for number, prompt in enumerate(prompts) for _ in prompt]
        run = PromptRunner(
            self,
            [sequences[number] for number in numbers],
            [position for prompt in prompts for position in range(len(prompt))],
        )
        of_prompts = PromptTokens(sequences=as_integers(numbers), sweeps=sweeps)
        thought = self._method.read_prompts(rows, run, model.mix_embeddings, of_prompts, self.observe)
        run.finish()
        return thought

    def _halting(self, signal: HaltingSignal, threshold: float | None) -> SignalHalting:
        def of_prediction(hidden: Tensor) -> Tensor:
            parts = hidden.unsqueeze(0).split(TOKENS_PER_HEAD_CALL, dim=1)
            return torch.cat([prediction_signal(self._logits(part), signal) for part in parts])

        return SignalHalting(
            signal=signal,
            threshold=float("-inf") if threshold is None else threshold,
            of_prediction=of_prediction,
        )

    def _scored(self, prompt: Sequence[int], hidden: Tensor, steps: Tensor) -> ScoredPrompt:
        """Run the head on the hidden states of one prompt, [1, S, H]."""
        logits = self._logits(hidden[:, -1:])[0]
        nll, most_likely = [logits.new_zeros(0)], [as_integers([])]
        for start in range(0, len(prompt) - 1, TOKENS_PER_HEAD_CALL):
            stop = min(start + TOKENS_PER_HEAD_CALL, len(prompt) - 1)
            here = self._logits(hidden[:, start:stop])
            nll.append(token_nll(here, prompt[start + 1 : stop + 1]))
            most_likely.append(here.argmax(dim=-1))
        return ScoredPrompt(
            logits=logits, steps=steps, nll=torch.cat(nll), most_likely=torch.cat(most_likely)
        )

    def _logits(self, hidden: Tensor) -> Tensor:
        """[1, N, H] -> [N, V]."""
        logits = self._model.axis.gather_last_dim(self._model.logits(hidden))
        return logits[0, :, : self._model.config.vocab_size]

    def embedded(self, tokens: Tensor) -> Tensor:
        """Return the rows that tokens, [B, S], start with, [S * n, B, H]."""
        return self._model.embed(self._method.tokens_of_rows(tokens))

    def think(self, rows: Tensor) -> Thinking:
        """Think about one token of each of N sequences, whose rows are [n, N, H]."""
        return self._method.think(rows, self._model.mix_embeddings, self.observe)

    def run_layers(
        self, rows: Tensor, positions: Sequence[int], log_weight: Tensor | None, stored: StoredCall
    ) -> Tensor:
        """Run rows, [1, R, H], at rotary positions; without the final norm.

        Raises:
            IndexError: a sequence has more tokens than there is room for.
        """
        self.observe("rows/sequences", stored.sequences)
        self.observe("rows/entered", rows)
        model, position_ids = self._model, as_integers(positions)
        if self._method.column is Column.LOG_WEIGHT:
            log_weight = rows.new_zeros(rows.shape[1]) if log_weight is None else log_weight
            self.observe("rows/log_weight", log_weight)
            log_weight = log_weight.to(self.store.weight_dtype).unsqueeze(0)
        self.observe("rows/positions", position_ids)
        if max(positions) >= self._turns.shape[1]:
            raise IndexError(f"a sequence of at most {self._turns.shape[1]} tokens cannot take one more")
        # [1, R, H] -> [R, 1, H] and back
        hidden = model.run_layers(
            rows.transpose(0, 1),
            position_ids.unsqueeze(0),
            log_weight=log_weight,
            context=RowContext(store=stored),
            turns=self._turns[:, position_ids],
        )
        return hidden.transpose(0, 1)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Apply the model's final norm."""
        normed: Tensor = self._model.final_norm(hidden)
        return normed


class _PromptReading:
    """What is known of a prompt that is being read token by token."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._prompt = prompt
        self._logits: list[Tensor] = []
        self._steps: list[Tensor] = []
        self._nll: list[Tensor] = []
        self._most_likely: list[Tensor] = []

    def take(self, logits: Tensor, steps: Tensor) -> None:
        """Take logits, [V], and steps of the next token."""
        self._logits = [logits]
        self._steps.append(steps)
        if len(self._steps) == len(self._prompt):
            return
        token = self._prompt[len(self._steps)]
        self._nll.append(token_nll(logits.unsqueeze(0), [token]))
        self._most_likely.append(logits.argmax().reshape(1))

    def result(self) -> ScoredPrompt:
        """Return what reading the whole prompt gave."""
        (logits,) = self._logits
        return ScoredPrompt(
            logits=logits,
            steps=torch.stack(self._steps),
            nll=torch.cat([logits.new_zeros(0), *self._nll]),
            most_likely=torch.cat([as_integers([]), *self._most_likely]),
        )


def token_nll(logits: Tensor, targets: Sequence[int]) -> Tensor:
    """Return the loss in nats of the tokens that followed, in at least float32: [N, V] -> [N]."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(wide, as_integers(targets), reduction="none")
