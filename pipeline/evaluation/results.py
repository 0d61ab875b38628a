"""The two files an evaluation leaves for the report: ``evaluation.json`` and ``sample.json``.

Both are the dataclasses below, field by field; unknown and missing fields are errors.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pipeline.metrics.records import DecodingSpeed, LossPoint
from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically

EVALUATION_FILE = "evaluation.json"
# An evaluation under limits: reports show the one of the whole model.
LIMITED_EVALUATION_FILE = "evaluation_under_limits.json"
SAMPLE_FILE = "sample.json"

NUM_QUARTILES = 4
STRICT = ConfigDict(extra="forbid")


@with_config(STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class LossQuartile:
    """A quarter of the labelled tokens, by their own loss in nats."""

    lowest_nll: float
    highest_nll: float
    mean_nll: float
    mean_steps: float
    num_tokens: int


@with_config(STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLoss:
    """The loss on the text of one source.

    Attributes:
        name: of the source.
        num_tokens: labelled tokens.
        num_bytes: of the text they encode; None where the tokenizer is not known.
        loss: mean cross-entropy, nats per labelled token.
    """

    name: str
    num_tokens: int
    num_bytes: int | None
    loss: float

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """The loss of all tokens, in bits, over the bytes of their text; comparable between tokenizers."""
        if not self.num_bytes:
            return None
        return self.loss * self.num_tokens / math.log(2) / self.num_bytes


@with_config(STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """The result of an evaluation on one split.

    Attributes:
        iteration: iteration of the checkpoint.
        num_tokens: labelled tokens.
        loss: mean cross-entropy, nats per labelled token.
        unigram_entropy: entropy of the split's own token frequencies, nats per token: the loss of the best
            possible model that ignores context.
        pruning_threshold: tau; None for a method that does not prune.
        steps_count: real tokens that took exactly 0..K steps; empty for a method that does not halt.
        nll_by_steps: mean loss of the labelled tokens that took 0..K steps; None where there is none.
        loss_quartiles: from the easiest to the hardest quarter; empty for a method that does not halt.
        residuals: Jacobi residual after each sweep, first sweep first; empty for ``vanilla``.
        tokens_per_second: speed of this evaluation.
        sources: the same tokens by the source of their text; empty in older files.
        prunes: slots below the threshold were left out, as decoding does; otherwise they were weighed softly.
        step_limit: tokens took at most so many steps; None: as many as the model was trained with.
        budget: that the threshold was found for, as it was written; None where it was not.
        speeds: of decoding some of the text, by batch size; empty where nothing was timed.
        worth: loss and cost with all steps, with those above the run's threshold, and with none; empty for a
            method that does not halt, and where not measured.
    """

    format: Literal["megaponder.evaluation/1"] = "megaponder.evaluation/1"
    checkpoint: str
    iteration: int
    split: str
    method: str
    num_latent_thoughts: int
    num_jacobi_iterations: int
    pruning_threshold: float | None
    num_tokens: int
    loss: float
    unigram_entropy: float
    steps_count: tuple[int, ...]
    nll_by_steps: tuple[float | None, ...]
    loss_quartiles: tuple[LossQuartile, ...]
    residuals: tuple[float, ...]
    tokens_per_second: float
    sources: tuple[SourceLoss, ...] = ()
    prunes: bool = False
    step_limit: int | None = None
    budget: str | None = None
    speeds: tuple[DecodingSpeed, ...] = ()
    worth: tuple[LossPoint, ...] = ()

    @property
    def is_of_whole_model(self) -> bool:
        """Whether nothing but the model's own settings limited the steps."""
        return not self.prunes and self.step_limit is None

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """Of all sources together; None where the bytes of one are not known."""
        known = [source.num_bytes for source in self.sources if source.num_bytes]
        if not known or len(known) < len(self.sources):
            return None
        return self.loss * self.num_tokens / math.log(2) / sum(known)


@with_config(STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class SampleToken:
    """One token as it is read.

    Attributes:
        piece: the text it adds, white space and line breaks included.
        steps: the ponder steps it took.
        nll: the negative log probability, in nats, that the model gave it; None for the very first token.
        is_prompt: whether it was given rather than generated.
    """

    piece: str
    steps: int
    nll: float | None
    is_prompt: bool


@with_config(STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class TextSample:
    """A generated text with the steps of each token; ``num_latent_thoughts`` (K) is the most it may take."""

    format: Literal["megaponder.sample/1"] = "megaponder.sample/1"
    checkpoint: str
    num_latent_thoughts: int
    pruning_threshold: float | None
    tokens_per_second: float | None
    tokens: tuple[SampleToken, ...]


Content = TypeVar("Content", EvaluationResult, TextSample)


def save_json(content: EvaluationResult | TextSample, path: Path) -> None:
    """Write one of the two files, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{json_text(content)}\n")


def json_text(content: EvaluationResult | TextSample) -> str:
    """Return the content of one of the two files."""
    return TypeAdapter(type(content)).dump_json(content, indent=1).decode()


def load_evaluation(path: Path) -> EvaluationResult:
    """Read ``evaluation.json``."""
    return _load(path, EvaluationResult)


def load_sample(path: Path) -> TextSample:
    """Read ``sample.json``."""
    return _load(path, TextSample)


def loss_quartiles(nll: NDArray[np.floating], steps: NDArray[np.integer]) -> tuple[LossQuartile, ...]:
    """Split tokens into four quarters by their own loss and average the steps of each.

    Args:
        nll: [N] loss of each labelled token, nats.
        steps: [N] steps each of them took.
    Returns:
        Easiest quarter first; the sizes differ by at most one. Empty with fewer than four tokens.
    Raises:
        ValueError: the two arrays differ in shape.
    """
    if nll.shape != steps.shape:
        raise ValueError(f"nll and steps must have one shape, but have {nll.shape} and {steps.shape}")
    if nll.size < NUM_QUARTILES:
        return ()
    order = np.argsort(nll, kind="stable")
    return tuple(_quartile(nll[part], steps[part]) for part in np.array_split(order, NUM_QUARTILES))


def _quartile(nll: NDArray[np.floating], steps: NDArray[np.integer]) -> LossQuartile:
    return LossQuartile(
        lowest_nll=float(nll.min()),
        highest_nll=float(nll.max()),
        mean_nll=float(nll.mean(dtype=np.float64)),
        mean_steps=float(steps.mean()),
        num_tokens=int(nll.size),
    )


def _load(path: Path, kind: type[Content]) -> Content:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path} must be a {kind.__name__}, but is not; write it again. Found: {error}"
        ) from error
