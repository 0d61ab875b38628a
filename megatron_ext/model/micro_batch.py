"""One micro-batch on its way through the passes: what every pass of it needs on this rank."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from megatron_ext.methods.base import PassContext, PonderMethod
from megatron_ext.model.batch import TokenBatch
from megatron_ext.ponder.attention import Segments
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSettings:
    """How a forward is to be done.

    Attributes:
        num_jacobi_iterations: J.
        prune: mask pruned slots out for good (hard mask) instead of weighing them.
        bottom_k_fraction: q of the bottom-k penalty; None takes the configured one.
        limits: on the steps that tokens take.
    """

    num_jacobi_iterations: int
    prune: bool = False
    bottom_k_fraction: float | None = None
    limits: StepLimits = UNLIMITED


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """A batch under way.

    Attributes:
        batch: on the device.
        segments: documents, as runs of tokens.
        method: the model's, under the limits of this forward.
        context: what the method works with.
    """

    batch: TokenBatch
    segments: Segments | None
    method: PonderMethod
    context: PassContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutput:
    """What one forward of a micro-batch gives.

    Attributes:
        token_losses: [S, B] cross-entropy in nats, 0 where there is no label.
        penalty: scalar to be weighted and added to the mean loss, or None.
        steps: [S, B] int64 steps taken by every token, or None where all take K.
        statistics: additive sums over the micro-batch, each [size], without gradient.
    """

    token_losses: Tensor
    penalty: Tensor | None
    steps: Tensor | None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
