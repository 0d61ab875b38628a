"""The result of a verification, and its file ``verification.json``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, with_config

from pipeline.shared.files import write_atomically

VERIFICATION_FILE = "verification.json"
# The threshold at which the papers claim agreement, and which is judged.
JUDGED_THRESHOLD = 1e-4


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Hard-pruned cached decoding at one threshold.

    Attributes:
        pruning_threshold: tau; None for a method that does not halt.
        mean_steps: extra steps per token that ran.
        steps_count: tokens that took exactly 0..K steps.
        loss: cross-entropy, nats per labelled token.
    """

    pruning_threshold: float | None
    mean_steps: float
    steps_count: tuple[int, ...]
    loss: float


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A training forward with J sweeps against a decoding.

    Attributes:
        num_jacobi_iterations: J; 0 for a method without sweeps.
        pruning_threshold: of the decoding.
        max_error, mean_error: difference of logits.
        top1_agreement: share of tokens with the same most likely next token.
        forward_loss: of the forward, nats per labelled token.
    """

    num_jacobi_iterations: int
    pruning_threshold: float | None
    max_error: float
    mean_error: float
    top1_agreement: float
    forward_loss: float


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """All comparisons on the same tokens.

    Attributes:
        num_tokens: tokens that both ways read.
        decodings: by threshold.
        comparisons: of every J with every threshold.
        residuals: of each sweep of the forward with most sweeps; empty for a method without any.
        contraction: factor by which a sweep shrinks the residual; None where it cannot be fitted.
    """

    num_tokens: int
    decodings: tuple[Decoding, ...]
    comparisons: tuple[Comparison, ...]
    residuals: tuple[float, ...]
    contraction: float | None

    def comparison(self, num_jacobi_iterations: int) -> Comparison:
        """Return the comparison with so many sweeps at the threshold that is judged."""
        return next(
            one
            for one in self.comparisons
            if one.num_jacobi_iterations == num_jacobi_iterations
            and one.pruning_threshold in (None, JUDGED_THRESHOLD)
        )

    @property
    def settled(self) -> Comparison:
        """Return the judged comparison with most sweeps: what differs there is not their error."""
        return self.comparison(max(one.num_jacobi_iterations for one in self.comparisons))


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCheckpoint:
    """The content of ``verification.json``.

    Attributes:
        run_jacobi_iterations: J of the run's own evaluation.
        bound: largest difference of logits that passes, with the most sweeps that were tried.
        run_bound: the same for the run's own J; None where that is not judged.
        passes: whether the bounds are kept.
    """

    format: Literal["megaponder.verification/1"] = "megaponder.verification/1"
    checkpoint: str
    iteration: int
    method: str
    precision: str
    num_latent_thoughts: int
    run_jacobi_iterations: int
    bound: float
    run_bound: float | None
    passes: bool
    verification: Verification


def save_verification(content: VerifiedCheckpoint, path: Path) -> None:
    """Write the file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{verification_text(content)}\n")


def verification_text(content: VerifiedCheckpoint) -> str:
    """Return the content of the file."""
    return TypeAdapter(VerifiedCheckpoint).dump_json(content, indent=1).decode()


def load_verification(path: Path) -> VerifiedCheckpoint:
    """Read the file."""
    return TypeAdapter(VerifiedCheckpoint).validate_json(path.read_bytes())
