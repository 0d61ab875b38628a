"""Choose the next token of a sequence."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """Settings of the choice of the next token.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: choose among this many most likely tokens; None among all.
        top_p: choose among the most likely tokens that together have this probability.
        repetition_penalty: logits of tokens that the sequence already has, its prompt included, are divided
            by it where positive and multiplied where negative (Keskar et al. 2019); 1 leaves them.
        seed: of the choice.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject settings that choose nothing.

        Raises:
            ValueError: naming the setting.
        """
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, but is {self.temperature}; 0 is greedy")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, but is {self.top_k}; unset it to choose among all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], but is {self.top_p}; 1 chooses among all")
        if self.repetition_penalty <= 0:
            raise ValueError(
                f"repetition_penalty must be above 0, but is {self.repetition_penalty}; 1 disables it"
            )


class TokenChooser:
    """Chooses the tokens of one sequence, independently of all others."""

    def __init__(self, sampling: SamplingSettings, *, number: int) -> None:
        """Seed the choice.

        Args:
            sampling: how to choose.
            number: of the sequence among those that are generated; each samples from its own seed.
        """
        self._sampling = sampling
        digest = hashlib.sha256(f"generate:{sampling.seed}:{number}".encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def choose(self, logits: Tensor, tokens: Sequence[int]) -> int:
        """Choose the next token.

        Args:
            logits: [V].
            tokens: those that the sequence has.
        """
        sampling = self._sampling
        if sampling.repetition_penalty != 1.0:
            logits = _penalized(logits, tokens, sampling.repetition_penalty)
        if sampling.temperature == 0:
            return int(logits.argmax())
        # On the CPU, where all ranks sample the same.
        values, order = (logits.float().cpu() / sampling.temperature).sort(descending=True)
        if not values[0].isfinite():
            # So near to zero that float32 cannot divide by it.
            return int(logits.argmax())
        probabilities = torch.softmax(values[: sampling.top_k], dim=0)
        # A token counts while those before it have less than top_p: at least one always does.
        before = probabilities.cumsum(0) - probabilities
        probabilities = torch.where(before < sampling.top_p, probabilities, 0.0)
        return int(order[torch.multinomial(probabilities, 1, generator=self._generator)])


def _penalized(logits: Tensor, tokens: Sequence[int], penalty: float) -> Tensor:
    present = torch.tensor(sorted(set(tokens)), device=logits.device)
    scores = logits[present]
    changed = logits.clone()
    changed[present] = torch.where(scores > 0, scores / penalty, scores * penalty)
    return changed
