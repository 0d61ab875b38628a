"""Continue a text, running for each token only the steps it needs (`megaponder generate`)."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.decoding import TokenDecoder
from megatron_ext.model import PonderModel
from pipeline.inference import OpenedCheckpoint
from pipeline.report.inputs import SampleToken, TextSample


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: choose among this many most likely tokens; None among all.
        top_p: choose among the most likely tokens that together have this probability.
        seed: of the choice.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that choose nothing.

        Raises:
            ValueError: naming the setting.
        """
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, but is {self.temperature}; 0 is greedy")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(
                f"top_k must be at least 1, but is {self.top_k}; leave it out to choose among all"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], but is {self.top_p}; 1 chooses among all")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumedToken:
    """One token of the text and what it cost.

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


def generate(
    checkpoint: OpenedCheckpoint, prompt_ids: Sequence[int], *, num_tokens: int, sampling: SamplingSettings
) -> TextSample:
    """Continue a prompt by exact cached decoding.

    Args:
        checkpoint: the model; every rank calls this with the same arguments and gets the same text.
        prompt_ids: at least one token.
        num_tokens: how many tokens to add; fewer where the document ends.
        sampling: how to choose.
    Raises:
        ValueError: the prompt is empty.
    """
    tokenizer = checkpoint.tokenizer
    started = time.monotonic()
    text = list(
        decode(
            checkpoint.module, prompt_ids, num_tokens=num_tokens, sampling=sampling, eod_id=tokenizer.eod_id
        )
    )
    seconds = time.monotonic() - started
    pieces = tokenizer.texts([token.token for token in text])
    ponder = checkpoint.config.ponder
    return TextSample(
        checkpoint=str(checkpoint.folder),
        num_latent_thoughts=ponder.num_latent_thoughts,
        pruning_threshold=ponder.pruning_threshold if ponder.method.halts else None,
        tokens_per_second=len(text) / seconds,
        tokens=tuple(
            SampleToken(piece=piece, steps=token.steps, nll=token.nll, is_prompt=token.is_prompt)
            for piece, token in zip(pieces, text, strict=True)
        ),
    )


def decode(
    model: PonderModel,
    prompt_ids: Sequence[int],
    *,
    num_tokens: int,
    sampling: SamplingSettings,
    eod_id: int | None = None,
) -> Iterator[ConsumedToken]:
    """Yield the tokens of the prompt and its continuation; prompt tokens too take only the steps they need.

    Args:
        model: in evaluation mode.
        prompt_ids: at least one token.
        num_tokens: how many tokens to add.
        sampling: how to choose.
        eod_id: a chosen token that ends the text and is not yielded.
    """
    if not prompt_ids:
        raise ValueError("a prompt must have at least one token, but is empty; write some text")
    generator = torch.Generator().manual_seed(sampling.seed)
    last = len(prompt_ids) + num_tokens - 1
    decoder = TokenDecoder(model, last + 1)
    token, nll = prompt_ids[0], None
    for position in range(last + 1):
        decoded = decoder.consume(token)
        yield ConsumedToken(token=token, steps=decoded.steps, nll=nll, is_prompt=position < len(prompt_ids))
        if position == last:
            return
        is_given = position + 1 < len(prompt_ids)
        token = prompt_ids[position + 1] if is_given else choose_token(decoded.logits, sampling, generator)
        if token == eod_id and not is_given:
            return
        nll = -float(torch.log_softmax(decoded.logits.float(), dim=0)[token])


def choose_token(logits: Tensor, sampling: SamplingSettings, generator: torch.Generator) -> int:
    """Choose the next token.

    Args:
        logits: [V].
        sampling: how.
        generator: on the CPU; equal on all ranks.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    values, order = (logits.float().cpu() / sampling.temperature).sort(descending=True)
    probabilities = torch.softmax(values[: sampling.top_k], dim=0)
    # A token counts while those before it have less than top_p: at least one always does.
    before = probabilities.cumsum(0) - probabilities
    probabilities = torch.where(before < sampling.top_p, probabilities, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])
