"""Random initial weights that depend only on the seed and the weight's name, not on the parallel layout."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded_initialization(seed: int, name: str) -> Iterator[None]:
    """Draw random numbers on the host from a seed of their own; afterwards its generator is as before.

    A pipeline stage builds only its own layers, so one sequence of draws for the whole model would differ
    between layouts.

    Args:
        seed: of the run.
        name: of what is initialized, the same on every layout.
    """
    state = torch.get_rng_state()
    # This text decides the initial weights of every run.
    digest = hashlib.sha256(f"start values:{seed}:{name}".encode()).digest()
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    try:
        yield
    finally:
        torch.set_rng_state(state)
