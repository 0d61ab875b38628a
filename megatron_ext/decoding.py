"""Decoding of many sequences: a token runs only the steps it needs (definitions 2.5, 3.2).

The method decides which rows of a token run; each runs against the stored rows of earlier tokens. At each
step the rows of all sequences that need it go through the layers together, and no others: the work is the sum
of the steps. A pruned slot is never computed and leaves no key and no value; a halted token does not run
again.

B = sequences, N = tokens of a call, H = hidden size, V = vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from megatron_ext.decoding_steps import StepStore
from megatron_ext.decoding_store import RowStore
from megatron_ext.device import device
from megatron_ext.methods.base import Column
from megatron_ext.model.attention import RowContext
from megatron_ext.model.model import PonderModel
from megatron_ext.ponder.decode.signals import SignalHalting, prediction_signal
from megatron_ext.ponder.decode.sweeps import PromptTokens, Sweeps
from megatron_ext.ponder.decode.think import Observer, Thought, ignore
from megatron_ext.ponder.step_limits import UNLIMITED, HaltingSignal, StepLimits

# The head runs on this many tokens of a prompt at once: the logits of all of them may not fit in memory.
TOKENS_PER_HEAD_CALL = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedTokens:
    """The result of consuming one token of each of some sequences.

    Attributes:
        logits: [N, V], predicting the next token of each, on every rank; without padding rows.
        steps: extra steps that ran, [N].
    """

    logits: Tensor
    steps: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPrompt:
    """The result of reading one prompt of S tokens.

    Attributes:
        logits: [V], predicting the token after the prompt.
        steps: extra steps that ran, [S].
        nll: loss in nats of the second to the last token, [S - 1].
        most_likely: the most likely token at each of their places, [S - 1].
    """

    logits: Tensor
    steps: Tensor
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
            model: in evaluation mode, without sequence parallelism and pipeline stages.
            num_sequences: B.
            max_tokens: how many tokens of a sequence may be consumed.
            limits: on the steps that tokens take.
        """
        self._model = model
        self._method = model.ponder.under(limits)
        self.halting: SignalHalting | None = None
        if limits.signal is not None:
            self.halting = self._method.halting = self._halting(limits.signal, limits.threshold)
        self.iterates = self._method.iterates
        self.store = self._reserve(num_sequences, max_tokens)
        self.num_tokens = [0] * num_sequences
        self.dtype = model.config.params_dtype
        self.observe: Observer = ignore

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

    @torch.inference_mode()
    def consume(self, sequences: Sequence[int], tokens: Sequence[int]) -> DecodedTokens:
        """Run the next token of some sequences through as many steps as each needs.

        Args:
            sequences: which; every one at most once.
            tokens: the next token of each.
        """
        model = self._model
        # [N] -> [N, n] -> [n, N, H]
        rows = model.embed(self._method.tokens_of_rows(_on_device(tokens).unsqueeze(1)))
        run = _Runner(self, sequences, [self.num_tokens[sequence] for sequence in sequences])
        thought = self._method.think(rows, run, model.mix_embeddings, self.observe)
        for sequence in sequences:
            self.num_tokens[sequence] += 1
        self.observe("hidden", thought.hidden)
        return DecodedTokens(logits=self._logits(thought.hidden), steps=thought.steps)

    @torch.inference_mode()
    def read_prompts(
        self, sequences: Sequence[int], prompts: Sequence[Sequence[int]], *, sweeps: Sweeps | None
    ) -> list[ReadPrompt]:
        """Start some sequences over with prompts of any lengths.

        Args:
            sequences: which; their earlier tokens are forgotten.
            prompts: at least one token each.
            sweeps: reads all tokens of the prompts together, latent thoughts by Jacobi iteration; None reads
                token by token, which is exact for every method.
        Raises:
            ValueError: a prompt is empty.
        """
        if not all(prompts):
            raise ValueError("a prompt must have at least one token, but one is empty; write some text")
        self.store.forget(sequences)
        for sequence in sequences:
            self.num_tokens[sequence] = 0
        if sweeps is None:
            return self._read_token_by_token(sequences, prompts)
        thought = self._read_together(sequences, prompts, sweeps)
        for sequence, prompt in zip(sequences, prompts, strict=True):
            self.num_tokens[sequence] = len(prompt)
        lengths = [len(prompt) for prompt in prompts]
        hidden, steps = thought.hidden.split(lengths, dim=1), thought.steps.split(lengths)
        return [self._read_prompt(*parts) for parts in zip(prompts, hidden, steps, strict=True)]

    def _read_token_by_token(
        self, sequences: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> list[ReadPrompt]:
        logits: dict[int, Tensor] = {}
        steps: dict[int, list[Tensor]] = {sequence: [] for sequence in sequences}
        nll: dict[int, list[Tensor]] = {sequence: [] for sequence in sequences}
        most_likely: dict[int, list[Tensor]] = {sequence: [] for sequence in sequences}
        for column in zip_longest(*prompts):
            tokens = {
                sequence: token
                for sequence, token in zip(sequences, column, strict=True)
                if token is not None
            }
            for sequence in tokens.keys() & logits.keys():
                nll[sequence].append(token_nll(logits[sequence].unsqueeze(0), [tokens[sequence]]))
                most_likely[sequence].append(logits[sequence].argmax().reshape(1))
            decoded = self.consume(list(tokens), list(tokens.values()))
            for index, sequence in enumerate(tokens):
                logits[sequence] = decoded.logits[index]
                steps[sequence].append(decoded.steps[index : index + 1])
        return [
            ReadPrompt(
                logits=logits[sequence],
                steps=torch.cat(steps[sequence]),
                nll=torch.cat([logits[sequence].new_zeros(0), *nll[sequence]]),
                most_likely=torch.cat([_on_device([]), *most_likely[sequence]]),
            )
            for sequence in sequences
        ]

    def _read_together(
        self, sequences: Sequence[int], prompts: Sequence[Sequence[int]], sweeps: Sweeps
    ) -> Thought:
        model = self._model
        tokens = _on_device([token for prompt in prompts for token in prompt])
        # [1, N] -> [1, N * n] -> [N * n, 1, H] -> [1, N * n, H]
        rows = model.embed(self._method.tokens_of_rows(tokens.unsqueeze(0))).transpose(0, 1)
        numbers = [number for number, prompt in enumerate(prompts) for _ in prompt]
        run = _Runner(
            self,
            [sequences[number] for number in numbers],
            [position for prompt in prompts for position in range(len(prompt))],
            starts_over=True,
        )
        of_prompts = PromptTokens(sequences=_on_device(numbers), sweeps=sweeps)
        return self._method.read_prompts(rows, run, model.mix_embeddings, of_prompts, self.observe)

    def _halting(self, signal: HaltingSignal, threshold: float | None) -> SignalHalting:
        def of_prediction(hidden: Tensor) -> Tensor:
            parts = hidden.unsqueeze(0).split(TOKENS_PER_HEAD_CALL, dim=1)
            return torch.cat([prediction_signal(self._logits(part), signal) for part in parts])

        return SignalHalting(
            signal=signal,
            threshold=float("-inf") if threshold is None else threshold,
            of_prediction=of_prediction,
        )

    def _read_prompt(self, prompt: Sequence[int], hidden: Tensor, steps: Tensor) -> ReadPrompt:
        """Run the head on the hidden states of one prompt, [1, S, H]."""
        logits = self._logits(hidden[:, -1:])[0]
        nll, most_likely = [logits.new_zeros(0)], [_on_device([])]
        for start in range(0, len(prompt) - 1, TOKENS_PER_HEAD_CALL):
            stop = min(start + TOKENS_PER_HEAD_CALL, len(prompt) - 1)
            here = self._logits(hidden[:, start:stop])
            nll.append(token_nll(here, prompt[start + 1 : stop + 1]))
            most_likely.append(here.argmax(dim=-1))
        return ReadPrompt(logits=logits, steps=steps, nll=torch.cat(nll), most_likely=torch.cat(most_likely))

    def _logits(self, hidden: Tensor) -> Tensor:
        """[1, N, H] -> [N, V]."""
        logits = self._model.axis.gather_last_dim(self._model.logits(hidden))
        return logits[0, :, : self._model.config.vocab_size]

    def run_layers(
        self, rows: Tensor, positions: Sequence[int], log_weight: Tensor | None, context: RowContext
    ) -> Tensor:
        """Run rows, [1, R, H], at rotary positions; without the final norm."""
        model, position_ids = self._model, _on_device(positions)
        if self._method.column is Column.LOG_WEIGHT:
            log_weight = rows.new_zeros(rows.shape[1]) if log_weight is None else log_weight
            self.observe("rows/log_weight", log_weight)
            log_weight = log_weight.to(self.store.weight_dtype).unsqueeze(0)
        self.observe("rows/positions", position_ids)
        # [1, R, H] -> [R, 1, H] and back
        hidden = model.run_layers(
            rows.transpose(0, 1), position_ids.unsqueeze(0), log_weight=log_weight, context=context
        )
        return hidden.transpose(0, 1)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Apply the model's final norm."""
        normed: Tensor = self._model.final_norm(hidden)
        return normed


class _Runner:
    """Runs rows of N tokens and stores them. Implements :class:`megatron_ext.ponder.decode.think.RowRunner`.

    A token of an iterating method keeps its place in the sequence. Rows of other methods are stored in the
    order of tokens and slots: after the stored rows, or, where a sequence starts over, from its beginning in
    every call.
    """

    def __init__(
        self,
        decoder: BatchDecoder,
        sequences: Sequence[int],
        positions: Sequence[int],
        *,
        starts_over: bool = False,
    ) -> None:
        self._decoder = decoder
        self._iterates = decoder.iterates
        self._sequences = sequences
        self._positions = positions
        self._starts_over = starts_over

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
        decoder, store = self._decoder, self._decoder.store
        chosen = range(len(self._sequences)) if tokens is None else tokens.tolist()
        sequences = [self._sequences[token] for token in chosen]
        positions = [self._positions[token] for token in chosen]
        if places is not None:
            taken = places.tolist()
        else:
            taken = positions if self._iterates else list(self._next_places(sequences))
        stored = store.places(sequences, taken, version=version)
        decoder.observe("rows/sequences", stored.sequences)
        decoder.observe("rows/entered", rows)
        hidden = decoder.run_layers(rows, positions, log_weight, RowContext(store=stored))
        hidden = decoder.final_norm(hidden) if normalize else hidden
        decoder.observe("rows/left", hidden)
        return hidden

    def _next_places(self, sequences: Sequence[int]) -> Iterator[int]:
        if self._starts_over:
            self._decoder.store.forget(sequences)
        taken: dict[int, int] = {}
        for sequence in sequences:
            place = taken.get(sequence, self._decoder.store.num_rows[sequence])
            taken[sequence] = place + 1
            yield place


def token_nll(logits: Tensor, targets: Sequence[int]) -> Tensor:
    """Return the loss in nats of the tokens that followed, in at least float32: [N, V] -> [N]."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(wide, _on_device(targets), reduction="none")


def _on_device(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=device())
