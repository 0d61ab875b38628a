"""Comparison of the logits of a native model with those of transformers, on fixed prompts."""

import gc
import logging
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config.schema import RunConfig
from pipeline.conversion.hf_config import CONFIG_JSON, read_config_json
from pipeline.conversion.hf_ponder_config import MODEL_TYPE
from pipeline.conversion.hf_weights import HuggingFaceWeights
from pipeline.conversion.prompts import DECODED_TOKENS, PROMPT_TOKENS, draw_prompts
from pipeline.shared.errors import ConversionError
from pipeline.shared.extras import how_to_install

logger = logging.getLogger(__name__)

# Relative to the root mean square of the logits. Two float32 computations differ by about 1e-6, a wrong
# layout of the weights by about 1.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitComparison:
    """The difference between the logits of two models, both computed in float32.

    Attributes:
        compared: whether the comparison was made.
        note: what was compared, or why nothing was.
        num_positions: positions of all prompts; each has one logit per token of the vocabulary.
        max_error: largest absolute difference.
        mean_error: mean absolute difference.
        logit_rms: root mean square of the logits of transformers.
        top1_agreement: share of positions with the same most likely token.
        tolerance: maximum allowed `max_error / logit_rms`.
        is_within_tolerance: whether the difference is within it.
    """

    compared: bool
    note: str
    num_positions: int = 0
    max_error: float | None = None
    mean_error: float | None = None
    logit_rms: float | None = None
    top1_agreement: float | None = None
    tolerance: float | None = None
    is_within_tolerance: bool | None = None


class LogitMismatchError(ConversionError):
    """The two sides of a conversion compute different logits."""

    def __init__(self, comparison: LogitComparison) -> None:
        super().__init__(
            f"the logits of both models must agree to {comparison.tolerance:g} of their root mean square, "
            f"but differ by at most {comparison.max_error:.3g}, by {comparison.mean_error:.3g} on average, "
            f"at a root mean square of {comparison.logit_rms:.3g} ({comparison.top1_agreement:.1%} with the "
            "same most likely token); they are different models: report it, or accept the difference with "
            "--allow-mismatch"
        )
        self.comparison = comparison


def compare_logits(
    weights: HuggingFaceWeights,
    checkpoint: Path,
    config: RunConfig,
    *,
    tolerance: float,
    allow_mismatch: bool,
    rounded_to: torch.dtype | None = None,
) -> LogitComparison:
    """Compute the logits of both models and compare them.

    A plain backbone is computed with one layer in memory at a time. An exported pondering model ponders on
    both sides, with one complete model in memory at a time.

    Args:
        weights: in a folder with its config.json.
        checkpoint: ``iter_`` folder, complete or being written.
        config: the native run, with `model.vocab_size`.
        tolerance: see :class:`LogitComparison`.
        allow_mismatch: return a difference above the tolerance instead of raising.
        rounded_to: the type that the native weights were rounded to when they were written; the native logits
            are computed with the rounded weights too.
    Raises:
        LogitMismatchError: the difference is above the tolerance.
    """
    if find_spec("transformers") is None:
        logger.warning(
            "LOGITS WERE NOT COMPARED: transformers is not installed, so nothing shows that both models "
            "compute the same; %s, and convert again",
            how_to_install("hf"),
        )
        return LogitComparison(compared=False, note="transformers is not installed")
    compute = _pondering_logits if is_pondering(weights.folder) else _backbone_logits
    expected, found, what = compute(weights, checkpoint, config, rounded_to)
    note = f"transformers {version('transformers')}, float32, {what}"
    if rounded_to is not None:
        note += f", weights rounded to {rounded_to} on both sides"
    result = measure(found, expected, tolerance=tolerance, note=note)
    if not result.is_within_tolerance and not allow_mismatch:
        raise LogitMismatchError(result)
    return result


def is_pondering(folder: Path) -> bool:
    """Return whether a folder holds a pondering model that this program exported."""
    return read_config_json(folder / CONFIG_JSON).get("model_type") == MODEL_TYPE


def _backbone_logits(
    weights: HuggingFaceWeights, checkpoint: Path, config: RunConfig, rounded_to: torch.dtype | None
) -> tuple[Tensor, Tensor, str]:
    """Return the logits of transformers, those of this program, and a description."""
    from pipeline.conversion import native_logits, transformers_logits

    tokens = draw_prompts(_vocab_size(config), config.model.max_position_embeddings)
    expected = transformers_logits.backbone_logits(weights, tokens)
    found = native_logits.backbone_logits(checkpoint, config, tokens, rounded_to=rounded_to)
    return expected, found, "the backbone without thoughts"


def _pondering_logits(
    weights: HuggingFaceWeights, checkpoint: Path, config: RunConfig, rounded_to: torch.dtype | None
) -> tuple[Tensor, Tensor, str]:
    from pipeline.conversion import native_logits, transformers_logits

    tokens = draw_prompts(
        _vocab_size(config),
        config.model.max_position_embeddings,
        num_tokens=PROMPT_TOKENS + DECODED_TOKENS,
    )
    expected = transformers_logits.pondering_logits(weights.folder, tokens)
    # Free the first model, which may be in reference cycles, before the second is built.
    gc.collect()
    found = native_logits.pondering_logits(checkpoint, config, tokens, rounded_to=rounded_to)
    return expected, found, f"{config.ponder.method}: forward of training and cached decoding"


def _vocab_size(config: RunConfig) -> int:
    vocab_size = config.model.vocab_size
    assert vocab_size is not None, "the configuration of a converted run states its vocabulary"
    return vocab_size


def measure(found: Tensor, expected: Tensor, *, tolerance: float, note: str) -> LogitComparison:
    """Compare logits, [B, S, V], with the expected ones."""
    error = (found - expected).abs()
    rms = float(expected.double().square().mean().sqrt())
    largest = float(error.max())
    return LogitComparison(
        compared=True,
        note=note,
        num_positions=error.shape[0] * error.shape[1],
        max_error=largest,
        mean_error=float(error.double().mean()),
        logit_rms=rms,
        top1_agreement=float((found.argmax(-1) == expected.argmax(-1)).double().mean()),
        tolerance=tolerance,
        # False for NaN.
        is_within_tolerance=bool(largest <= tolerance * rms),
    )
