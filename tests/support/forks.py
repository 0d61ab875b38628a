"""Processes forked from one that has imported torch and Megatron already.

Those imports take seconds of a core: most of what a tiny command or rank costs.
"""

import functools
import multiprocessing
from multiprocessing.context import ForkServerContext

_PRELOADED = ("pipeline.cli", "pipeline.run.start", "pipeline.evaluation.checkpoint", "pipeline.generation")


@functools.cache
def fork_context() -> ForkServerContext:
    """Return the context that starts such processes.

    The process that they are forked from starts with the first of them and ends with the tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED])
    return context
