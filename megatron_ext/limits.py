"""A trained model with fewer steps, or another threshold, for as long as one looks at it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from megatron_ext.model.model import PonderModel


@contextmanager
def limited(
    model: PonderModel, *, num_latent_thoughts: int | None = None, pruning_threshold: float | None = None
) -> Iterator[None]:
    """Let a model take at most so many steps, or halt at another threshold; its weights stay as they are.

    A router gives the share of the steps that are left out to the last one that is not.

    Args:
        model: every stage of a pipeline is limited alike.
        num_latent_thoughts: K, at most the model's own; None leaves it.
        pruning_threshold: tau; None leaves it.
    """
    own = model.config.ponder
    num_steps = own.num_latent_thoughts if num_latent_thoughts is None else num_latent_thoughts
    assert 0 <= num_steps <= own.num_latent_thoughts, f"{num_steps} of {own.num_latent_thoughts} steps"
    assert not own.multiply_embedding or num_steps == own.num_latent_thoughts, "the start depends on K"
    tau = own.pruning_threshold if pruning_threshold is None else pruning_threshold
    changed = replace(own, num_latent_thoughts=num_steps, pruning_threshold=tau)
    model.config.ponder = model.ponder.config = changed
    try:
        yield
    finally:
        model.config.ponder = model.ponder.config = own
