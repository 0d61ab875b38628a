"""Continue texts, running for each token only the steps it needs (`megaponder generate`).

Example::

    from pathlib import Path

    from pipeline.generation.texts import GenerationSettings, SamplingSettings, generate
    from pipeline.evaluation.opened import opened_checkpoint

    settings = GenerationSettings(num_tokens=40, sampling=SamplingSettings(temperature=0.8, seed=1))
    with opened_checkpoint(Path("runs/demo/checkpoints")) as checkpoint:
        for text in generate(checkpoint, ["import os", "def main("], settings):
            print(text.number, text.ending, text.mean_steps, text.continuation)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from data_prep.tokenizers.tokenizer import Tokenizer
from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.evaluation.results import SampleToken, TextSample
from pipeline.generation.batch import Ending, GenerationSettings, GrowingText, Prefill, generate_batch
from pipeline.generation.context import fit_prompts
from pipeline.generation.sampling import SamplingSettings

__all__ = [
    "Ending",
    "GeneratedText",
    "GenerationSettings",
    "Prefill",
    "SamplingSettings",
    "generate",
    "text_sample",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedText:
    """A prompt and its continuation.

    Attributes:
        number: of the prompt.
        tokens: prompt and continuation, up to the stop string or the end of the document.
        ending: why the text ended; None while it grows.
    """

    number: int
    tokens: tuple[SampleToken, ...]
    ending: Ending | None

    @property
    def prompt(self) -> str:
        """The text that was given."""
        return "".join(token.piece for token in self.tokens if token.is_prompt)

    @property
    def continuation(self) -> str:
        """The text that was added."""
        return "".join(token.piece for token in self.tokens if not token.is_prompt)

    @property
    def mean_steps(self) -> float:
        """Mean ponder steps of a token, the prompt's included."""
        return sum(token.steps for token in self.tokens) / len(self.tokens)


def generate(
    checkpoint: OpenedCheckpoint,
    prompts: Sequence[str | Sequence[int]],
    settings: GenerationSettings,
    *,
    watch: Callable[[GeneratedText], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[GeneratedText]:
    """Continue prompts; each text is yielded as soon as it has ended.

    A text does not depend on the other prompts: it samples from its own seed, and the batch changes its
    logits by rounding only.

    Args:
        checkpoint: the model; every rank calls this with the same arguments and gets the same texts.
        prompts: texts, which are read as the beginnings of documents, or the ids of all of their tokens; at
            least one token each.
        settings: what to generate.
        watch: called with each text after its prompt and after each of its tokens.
        should_stop: called before every call of the layers, equal on all ranks; texts that have not ended are
            not yielded.
    Raises:
        DataError: a prompt is empty, or does not fit into the context of the model.
    """
    tokenizer, config = checkpoint.tokenizer, checkpoint.config
    ids = fit_prompts(
        [checkpoint.prompt_ids(prompt) if isinstance(prompt, str) else prompt for prompt in prompts],
        num_tokens=settings.num_tokens,
        max_positions=config.model.max_position_embeddings,
        trained_length=config.training.seq_length,
        cuts=settings.cut_prompts,
        speaks=checkpoint.groups.rank == 0,
    )

    def has_stopped(text: GrowingText) -> bool:
        return settings.stop != () and _first_stop(_pieces(tokenizer, text), settings.stop) is not None

    def show(text: GrowingText) -> None:
        if watch is not None:
            watch(_generated(tokenizer, text, settings.stop))

    for text in generate_batch(
        checkpoint.module,
        ids,
        settings,
        eod_id=tokenizer.eod_id,
        has_stopped=has_stopped,
        watch=show,
        should_stop=should_stop,
    ):
        yield _generated(tokenizer, text, settings.stop)


def text_sample(
    checkpoint: OpenedCheckpoint, text: GeneratedText, settings: GenerationSettings, *, seconds: float
) -> TextSample:
    """Return a text in the form that reports show.

    Args:
        checkpoint: the model that generated it.
        text: generated alone.
        settings: that it was generated with.
        seconds: time that it took.
    """
    ponder = checkpoint.module.ponder.under(settings.limits).config
    return TextSample(
        checkpoint=str(checkpoint.folder),
        num_latent_thoughts=ponder.num_latent_thoughts,
        pruning_threshold=ponder.pruning_threshold if ponder.method.halts else None,
        tokens_per_second=len(text.tokens) / seconds,
        tokens=text.tokens,
    )


def _pieces(tokenizer: Tokenizer, text: GrowingText) -> list[str]:
    """What each generated token adds to the text of the prompt."""
    return tokenizer.texts(text.ids)[len(text.prompt) :]


def _first_stop(pieces: Sequence[str], stop: Sequence[str]) -> int | None:
    """Where the first of the stop strings begins in the joined pieces."""
    joined = "".join(pieces)
    return min((joined.index(one) for one in stop if one in joined), default=None)


def _generated(tokenizer: Tokenizer, text: GrowingText, stop: Sequence[str]) -> GeneratedText:
    pieces = tokenizer.texts(text.ids)
    num_prompt = len(text.prompt)
    end = _first_stop(pieces[num_prompt:], stop) if text.ending is Ending.STOP else None
    if end is not None:
        pieces = [*pieces[:num_prompt], *_cut(pieces[num_prompt:], end)]
    tokens = tuple(
        SampleToken(piece=piece, steps=token.steps, nll=token.nll, is_prompt=token.is_prompt)
        for piece, token in zip(pieces, text.tokens, strict=False)
    )
    return GeneratedText(number=text.number, tokens=tokens, ending=text.ending)


def _cut(pieces: Sequence[str], length: int) -> list[str]:
    """The first pieces, of `length` letters together."""
    kept = []
    for piece in pieces:
        if length == 0:
            break
        kept.append(piece[:length])
        length -= len(kept[-1])
    return kept
