"""Score given tokens with a model that runs only the steps each token needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_ext.decoding import BatchDecoder, token_nll
from megatron_ext.device import device
from megatron_ext.model.model import PonderModel
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredText:
    """The score of a text.

    Attributes:
        log_likelihood: of the targets together, in nats.
        is_greedy: every target was the most likely token at its place.
        num_tokens: that went through the layers.
        num_steps: extra steps that they took together.
    """

    log_likelihood: float
    is_greedy: bool
    num_tokens: int
    num_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextToScore:
    """Tokens of which the last are to be predicted.

    Attributes:
        tokens: at least two.
        num_targets: how many of the last ones; the first token cannot be one.
    """

    tokens: Sequence[int]
    num_targets: int

    def __post_init__(self) -> None:
        """Reject targets that cannot be predicted."""
        if not 0 <= self.num_targets < len(self.tokens):
            raise ValueError(
                f"a text of {len(self.tokens)} tokens has at most {len(self.tokens) - 1} targets, but "
                f"{self.num_targets} are requested; put a token that begins a document before it"
            )


def score_texts(
    model: PonderModel,
    texts: Sequence[TextToScore],
    *,
    batch_size: int,
    sweeps: Sweeps | None,
    limits: StepLimits = UNLIMITED,
) -> list[ScoredText]:
    """Read texts as prompts are read: pruned steps are neither computed nor seen.

    Args:
        model: in evaluation mode, on one pipeline stage; all tensor-parallel ranks call this together.
        texts: of any lengths; nothing is padded.
        batch_size: how many are read at once.
        sweeps: of the Jacobi iteration; None reads token by token.
        limits: on the steps that tokens take.
    Returns:
        One result for each text, in the same order.
    """
    if not texts:
        return []
    longest = max(len(text.tokens) - 1 for text in texts)
    decoder = BatchDecoder(
        model, num_sequences=min(batch_size, len(texts)), max_tokens=longest, limits=limits
    )
    results = []
    for start in range(0, len(texts), batch_size):
        results += _score_batch(decoder, texts[start : start + batch_size], sweeps)
    return results


def _score_batch(
    decoder: BatchDecoder, texts: Sequence[TextToScore], sweeps: Sweeps | None
) -> list[ScoredText]:
    # What follows the last token is not asked for, so it is not read.
    read = decoder.score_prompts(range(len(texts)), [text.tokens[:-1] for text in texts], sweeps=sweeps)
    results = []
    for text, prompt in zip(texts, read, strict=True):
        last = token_nll(prompt.logits.unsqueeze(0), text.tokens[-1:])
        first_target = len(text.tokens) - text.num_targets
        # [S - 1] of the second to the last token, of which the targets are the last
        nll = torch.cat([prompt.nll, last])[first_target - 1 :]
        most_likely = torch.cat([prompt.most_likely, prompt.logits.argmax().reshape(1)])[first_target - 1 :]
        targets = torch.tensor(text.tokens[first_target:], dtype=torch.int64, device=device())
        results.append(
            ScoredText(
                log_likelihood=-float(nll.double().sum()),
                is_greedy=bool((most_likely == targets).all()),
                num_tokens=len(prompt.steps),
                num_steps=int(prompt.steps.sum()),
            )
        )
    return results
