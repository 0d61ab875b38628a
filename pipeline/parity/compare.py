from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one training step gives.

    Attributes:
        loss: mean cross-entropy, nats per labelled token.
        grad_norm: norm of all gradients before clipping; NaN where the update was skipped.
    """

    loss: float
    grad_norm: float
