"""Random start values that depend on the seed and the weight's name alone, not on the layout of the run."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawing(seed: int, name: str) -> Iterator[None]:
    """Draw from a generator of its own on the host; the one outside goes on as if nothing had been drawn.

    A pipeline stage builds only its own layers, so a common sequence of draws would differ between layouts.

    Args:
        seed: of the run.
        name: of what is drawn, the same on every layout.
    """
    state = torch.get_rng_state()
    digest = hashlib.sha256(f"start values:{seed}:{name}".encode()).digest()
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    try:
        yield
    finally:
        torch.set_rng_state(state)
