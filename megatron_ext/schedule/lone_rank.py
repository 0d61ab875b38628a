"""Data parallelism over a single rank: Megatron's collectives over the gradients and weights left out.

The optimizer that shares its state over data-parallel ranks reduces and scatters all gradients in every step,
and gathers all weights. On a group of one rank both are copies of a buffer onto itself, through memory of the
communication library: two passes over the whole model, and the page faults of its size.
"""

import functools
from collections.abc import Callable
from typing import Any

from megatron.core.distributed import param_and_grad_buffer
from torch import Tensor

# Both take (output, input, *, group, ...).
_COLLECTIVES = ("dist_reduce_scatter_func", "dist_all_gather_func")


@functools.cache
def skip_collectives_of_one_rank() -> None:
    """Let Megatron's buffers of gradients and weights leave them out; further calls do nothing."""
    for name in _COLLECTIVES:
        setattr(param_and_grad_buffer, name, among_several(getattr(param_and_grad_buffer, name)))


def among_several(collective: Callable[..., Any]) -> Callable[..., Any]:
    """Return the collective, which does nothing where a group of one rank works on its own buffer.

    Args:
        collective: takes the output, the input and the group by name; over one rank it is the identity.
    """

    @functools.wraps(collective)
    def run(output: Tensor, given: Tensor, *arguments: Any, group: Any, **keywords: Any) -> Any:
        is_same = output.data_ptr() == given.data_ptr() and output.numel() == given.numel()
        if group.size() == 1 and is_same:
            # No handle to wait for, as after a collective that is not asynchronous.
            return None
        return collective(output, given, *arguments, group=group, **keywords)

    return run
