"""The logits of a native model beside those of transformers, on fixed prompts."""

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
from pipeline.shared.errors import ConversionError

logger = logging.getLogger(__name__)

NUM_PROMPTS, PROMPT_TOKENS, PROMPT_SEED = 4, 64, 20260101
# Of the root mean square of the logits. Two float32 computations differ by some 1e-6; a wrong layout by 1.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitComparison:
    """How far two models are apart, both computed in float32.

    Attributes:
        compared: whether anybody looked.
        note: why not, or what was compared.
        num_positions: positions of all prompts, of which each has a logit per token of the vocabulary.
        max_error: largest absolute difference.
        mean_error: mean absolute difference.
        logit_rms: root mean square of transformers' logits.
        top1_agreement: share of positions with the same most likely token.
        tolerance: largest allowed `max_error / logit_rms`.
        is_within_tolerance: whether that held.
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


def prompts(vocab_size: int, max_positions: int, *, num_tokens: int = PROMPT_TOKENS) -> Tensor:
    """Return the prompts: ids drawn from the whole vocabulary, always the same, [B, S]."""
    generator = torch.Generator().manual_seed(PROMPT_SEED)
    return torch.randint(vocab_size, (NUM_PROMPTS, min(num_tokens, max_positions)), generator=generator)


def compare_logits(
    weights: HuggingFaceWeights,
    checkpoint: Path,
    config: RunConfig,
    *,
    tolerance: float,
    allow_mismatch: bool,
    rounded_to: torch.dtype | None = None,
) -> LogitComparison:
    """Compute the logits of both sides and hold them against each other.

    A plain backbone is computed with one layer in memory at a time. A folder with this program's own code
    ponders on both sides, with one whole model in memory at a time.

    Args:
        weights: in a folder with its config.json.
        checkpoint: ``iter_`` folder, finished or being written.
        config: the native run, with `model.vocab_size`.
        tolerance: see :class:`LogitComparison`.
        allow_mismatch: return a difference above it instead of raising.
        rounded_to: what the native weights were rounded to when they were written; the logits are those of
            the rounded ones.
    Raises:
        ConversionError: the difference is above the tolerance.
    """
    if find_spec("transformers") is None:
        logger.warning(
            "LOGITS WERE NOT COMPARED: transformers is not installed, so nothing shows that both models "
            "compute "
            "the same; pip install 'megaponder[hf]' and convert again"
        )
        return LogitComparison(compared=False, note="transformers is not installed")
    vocab_size = config.model.vocab_size
    assert vocab_size is not None, "a run that is converted says its vocabulary"
    sides = _pondering_sides if ponders(weights.folder) else _backbone_sides
    expected, found, what = sides(weights, checkpoint, config, rounded_to)
    note = f"transformers {version('transformers')}, float32, {what}"
    if rounded_to is not None:
        note += f", weights rounded to {rounded_to} on both sides"
    result = measure(found, expected, tolerance=tolerance, note=note)
    if not result.is_within_tolerance and not allow_mismatch:
        raise ConversionError(
            f"the logits of both models must agree to {tolerance:g} of their root mean square, but differ by "
            f"{result.max_error:.3g} at most and {result.mean_error:.3g} in the mean at a root mean square "
            "of "
            f"{result.logit_rms:.3g} ({result.top1_agreement:.1%} same most likely token); this is another "
            "model: report it, or say --allow-mismatch if you know why"
        )
    return result


def ponders(folder: Path) -> bool:
    """Whether a folder holds a pondering model of this program."""
    return read_config_json(folder / CONFIG_JSON).get("model_type") == MODEL_TYPE


def _backbone_sides(
    weights: HuggingFaceWeights, checkpoint: Path, config: RunConfig, rounded_to: torch.dtype | None
) -> tuple[Tensor, Tensor, str]:
    """Logits of transformers, those of this program, and what they are."""
    from pipeline.conversion.native_logits import native_logits
    from pipeline.conversion.reference_logits import reference_logits

    tokens = prompts(config.model.vocab_size or 0, config.model.max_position_embeddings)
    expected = reference_logits(weights, tokens)
    found = native_logits(checkpoint, config, tokens, rounded_to=rounded_to)
    return expected, found, "the backbone without thoughts"


def _pondering_sides(
    weights: HuggingFaceWeights, checkpoint: Path, config: RunConfig, rounded_to: torch.dtype | None
) -> tuple[Tensor, Tensor, str]:
    from pipeline.conversion.exported_logits import exported_logits
    from pipeline.conversion.pondering_logits import DECODED_TOKENS, PROMPT_TOKENS, native_pondering_logits

    num_tokens = PROMPT_TOKENS + DECODED_TOKENS
    tokens = prompts(
        config.model.vocab_size or 0, config.model.max_position_embeddings, num_tokens=num_tokens
    )
    expected = exported_logits(weights.folder, tokens)
    # One model at a time: some of this one may hang in cycles.
    gc.collect()
    found = native_pondering_logits(checkpoint, config, tokens, rounded_to=rounded_to)
    return expected, found, f"{config.ponder.method}: forward of training and cached decoding"


def measure(found: Tensor, expected: Tensor, *, tolerance: float, note: str) -> LogitComparison:
    """Hold logits, [B, S, V], against those expected."""
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
        # Written so that NaN is outside.
        is_within_tolerance=bool(largest <= tolerance * rms),
    )
