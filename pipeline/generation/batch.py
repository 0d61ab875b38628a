"""Generate many sequences: whenever one ends, the next prompt takes its place."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from megatron_ext.decoding import BatchDecoder, ScoredPrompt, token_nll
from megatron_ext.model.model import PonderModel
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits
from pipeline.generation.sampling import SamplingSettings, TokenChooser


class Prefill(StrEnum):
    """Ways to read a prompt."""

    EXACT = "exact"
    """Token by token."""
    JACOBI = "jacobi"
    """All tokens together, latent thoughts by Jacobi sweeps until they settle."""


class Ending(StrEnum):
    """Reasons for the end of a sequence."""

    LENGTH = "length"
    EOD = "eod"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """Settings of a generation.

    Attributes:
        num_tokens: how many tokens to add; fewer where the document or a stop string ends the sequence.
        sampling: how to choose.
        stop: texts that end a sequence, which does not include them.
        prefill: how prompts are read.
        tolerance: of the Jacobi sweeps, see :class:`megatron_ext.ponder.decode.sweeps.Sweeps`; None takes
            1e-5, or the rounding of the weights where that is coarser.
        damping, num_groups, by_slot: of the sweeps, see there.
        batch_size: sequences that are decoded together at most; affects only the speed.
        limits: on the steps that tokens take.
        cut_prompts: cut the beginning of prompts that leave no room for the new tokens in the context of the
            model, instead of refusing them.
    """

    num_tokens: int = 64
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: tuple[str, ...] = ()
    prefill: Prefill = Prefill.JACOBI
    tolerance: float | None = None
    damping: float = 0.0
    num_groups: int = 1
    by_slot: bool = False
    batch_size: int = 8
    limits: StepLimits = UNLIMITED
    cut_prompts: bool = False

    def __post_init__(self) -> None:
        """Reject settings that generate nothing.

        Raises:
            ValueError: naming the setting.
        """
        for name in ("num_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}; give a number")
        if not all(self.stop):
            raise ValueError("stop must not contain an empty string; remove it")
        if self.prefill is Prefill.EXACT and Sweeps() != Sweeps(
            damping=self.damping, num_groups=self.num_groups, by_slot=self.by_slot
        ):
            raise ValueError("damping, num_groups and by_slot must be unset where prefill is exact")

    def sweeps(self, dtype: torch.dtype) -> Sweeps | None:
        """The sweeps over prompts of a model with weights of `dtype`; None reads token by token."""
        if self.prefill is Prefill.EXACT:
            return None
        tolerance = max(1e-5, torch.finfo(dtype).eps) if self.tolerance is None else self.tolerance
        return Sweeps(
            tolerance=tolerance, damping=self.damping, num_groups=self.num_groups, by_slot=self.by_slot
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumedToken:
    """One token of a sequence and its cost.

    Attributes:
        token: id.
        steps: ponder steps it took.
        nll: loss in nats the model had on it; None for the first token, which nothing predicts.
        is_prompt: given, not generated.
    """

    token: int
    steps: int
    nll: float | None
    is_prompt: bool


@dataclass(slots=True)
class GrowingText:
    """A sequence that is being generated.

    Attributes:
        number: of the prompt.
        prompt: its tokens.
        chooser: of its next tokens.
        tokens: those consumed so far, the prompt's first.
        ending: why it has ended; None while it grows.
    """

    number: int
    prompt: Sequence[int]
    chooser: TokenChooser
    tokens: list[ConsumedToken] = field(default_factory=list)
    ending: Ending | None = None

    @property
    def ids(self) -> list[int]:
        """Of all tokens so far."""
        return [one.token for one in self.tokens]


def generate_batch(
    model: PonderModel,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    eod_id: int | None = None,
    has_stopped: Callable[[GrowingText], bool] = lambda text: False,
    watch: Callable[[GrowingText], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[GrowingText]:
    """Yield each sequence as soon as it has ended.

    Args:
        model: in evaluation mode; every rank calls this with the same arguments and gets the same texts.
        prompts: at least one token each.
        settings: what to generate.
        eod_id: a chosen token that ends the text and is not consumed.
        has_stopped: called with a sequence after each of its tokens; returns whether it has ended.
        watch: called with a sequence after its prompt and after each of its tokens.
        should_stop: called before every call of the layers, equal on all ranks; ends everything, and
            sequences that have not ended are not yielded.
    """
    waiting = deque(enumerate(prompts))
    decoder = BatchDecoder(
        model,
        num_sequences=min(settings.batch_size, len(waiting)),
        max_tokens=max(map(len, prompts), default=0) + settings.num_tokens,
        limits=settings.limits,
    )
    batch = _Batch(decoder, settings, eod_id=eod_id, has_stopped=has_stopped, watch=watch)
    while (waiting or batch.is_busy) and not should_stop():
        batch.start(waiting)
        batch.step()
        yield from batch.take_ended()


class _Batch:
    """The sequences that are being decoded, by their place in the decoder."""

    def __init__(
        self,
        decoder: BatchDecoder,
        settings: GenerationSettings,
        *,
        eod_id: int | None,
        has_stopped: Callable[[GrowingText], bool],
        watch: Callable[[GrowingText], None],
    ) -> None:
        self._decoder = decoder
        self._settings = settings
        self._sweeps = settings.sweeps(decoder.dtype)
        self._eod_id = eod_id
        self._has_stopped = has_stopped
        self._watch = watch
        self._texts: dict[int, GrowingText] = {}
        # Of the sequences whose next token is to be chosen.
        self._logits: dict[int, Tensor] = {}
        # The chosen tokens that run, each with the loss the model had on it.
        self._running: dict[int, tuple[int, float]] = {}

    @property
    def is_busy(self) -> bool:
        """Whether any sequence is being decoded."""
        return bool(self._texts)

    def start(self, waiting: deque[tuple[int, Sequence[int]]]) -> None:
        """Read as many of the waiting prompts as there are free places."""
        free = [place for place in range(len(self._decoder.num_tokens)) if place not in self._texts]
        started = {place: waiting.popleft() for place in free[: len(waiting)]}
        if not started:
            return
        prompts = [prompt for _, prompt in started.values()]
        read = self._decoder.score_prompts(list(started), prompts, sweeps=self._sweeps)
        for (place, (number, prompt)), result in zip(started.items(), read, strict=True):
            chooser = TokenChooser(self._settings.sampling, number=number)
            text = GrowingText(number, prompt, chooser, _prompt_tokens(prompt, result))
            self._texts[place], self._logits[place] = text, result.logits
            self._watch(text)

    def step(self) -> None:
        """Choose a token for every sequence that has none running, and run the next row of all."""
        self._choose()
        decoded = self._decoder.advance() if self._running else None
        if decoded is None:
            return
        steps = decoded.steps.tolist()
        for index, place in enumerate(decoded.sequences):
            self._logits[place] = decoded.logits[index]
            token, loss = self._running.pop(place)
            self._append(
                self._texts[place],
                ConsumedToken(token=token, steps=steps[index], nll=loss, is_prompt=False),
            )

    def _choose(self) -> None:
        chosen: dict[int, int] = {}
        for place in sorted(self._logits):
            text = self._texts[place]
            token = text.chooser.choose(self._logits[place], text.ids)
            if token == self._eod_id:
                text.ending = Ending.EOD
            else:
                chosen[place] = token
        if chosen:
            logits = torch.stack([self._logits[place] for place in chosen])
            tokens = list(chosen.values())
            losses = token_nll(logits, tokens).tolist()
            self._running |= dict(zip(chosen, zip(tokens, losses, strict=True), strict=True))
            self._decoder.begin(list(chosen), tokens)
        self._logits.clear()

    def take_ended(self) -> Iterator[GrowingText]:
        """Yield the sequences that have ended; their places are free again."""
        for place in [place for place, text in self._texts.items() if text.ending is not None]:
            self._logits.pop(place, None)
            yield self._texts.pop(place)

    def _append(self, text: GrowingText, token: ConsumedToken) -> None:
        text.tokens.append(token)
        if self._has_stopped(text):
            text.ending = Ending.STOP
        elif len(text.tokens) == len(text.prompt) + self._settings.num_tokens:
            text.ending = Ending.LENGTH
        self._watch(text)


def _prompt_tokens(prompt: Sequence[int], read: ScoredPrompt) -> list[ConsumedToken]:
    losses = [None, *read.nll.tolist()]
    return [
        ConsumedToken(token=token, steps=steps, nll=loss, is_prompt=True)
        for token, steps, loss in zip(prompt, read.steps.tolist(), losses, strict=True)
    ]
