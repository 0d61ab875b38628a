"""The Jacobi residual: how far a sweep still moves the latent thoughts (definitions 2.3)."""

from torch import Tensor


def squared_change(new: Tensor, old: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums that give the residual ``rms(new - old) / rms(old)`` of a sweep.

    Sums, not means, so that they can be added over micro-batches and ranks before dividing.

    Args:
        new: [S, K, B, H], thoughts after the sweep.
        old: [S, K, B, H], thoughts before it.
        real: [S, B] bool, False at padding.
    Returns:
        Two scalars in at least float32: sum of (new - old)^2 and sum of old^2.
    """
    weight = real.unsqueeze(1).unsqueeze(-1)
    new, old = new.detach(), old.detach()
    if new.dtype.itemsize < 4:
        new, old = new.float(), old.float()
    change = ((new - old).square() * weight).sum()
    norm = (old.square() * weight).sum()
    return change, norm


def residual(change: Tensor, norm: Tensor) -> Tensor:
    """Return ``sqrt(change / norm)``, 0 where nothing was measured. Shape is kept."""
    return (change / norm.clamp_min(1e-30)).sqrt()
