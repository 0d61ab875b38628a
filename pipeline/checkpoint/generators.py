"""The random generators of a rank."""

import random
from typing import Any

import numpy as np
import torch

from megatron_ext.device import generator_state, set_generator_state


def generator_states() -> dict[str, Any]:
    """Return the state of every random generator of this rank."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": generator_state(),
        "model_parallel": get_cuda_rng_tracker().get_states(),
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Set every random generator of this rank."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    set_generator_state(states["cuda"])
    get_cuda_rng_tracker().set_states(states["model_parallel"])
