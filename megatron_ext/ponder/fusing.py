"""Functions that torch.compile turns into one kernel, or a few, once this process is told to compile.

Between the matrix products of a layer, most time goes into reading and writing memory and into starting
kernels. Such a stretch is one function here, marked with :func:`fused`, and its gradient is another; both run
inside of autograd functions, so that what is kept for backward does not depend on the compiler. Without a
compiler they run operation by operation, with the same results but for rounding.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Backend = str | Callable[..., Any]
P = ParamSpec("P")
R = TypeVar("R")


class _Compiler:
    """How fused functions of this process run.

    Attributes:
        backend: of torch.compile; None runs them as they are.
    """

    def __init__(self) -> None:
        self.backend: Backend | None = None

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a fused function, or what has been compiled of it."""
        if self.backend is None:
            return function(*args)
        # Whether a weight is frozen, or a forward is an evaluation, makes no difference to a kernel.
        plain = (arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
        return _compiled(function, self.backend)(*plain)


compiler = _Compiler()
"""Of this process; a rehearsal replaces its :meth:`run`."""


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function of tensors, and of numbers that are the same in every call, as one to compile.

    It runs without gradient, and may write to one of its arguments.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        assert not kwargs, "the arguments of a fused function are given by position"
        result: R = compiler.run(function, *args)
        return result

    return run


def compile_fused(backend: Backend | None) -> None:
    """Let fused functions of this process run compiled from now on, or as they are.

    Args:
        backend: of torch.compile, such as "inductor"; None for no compiler.
    """
    compiler.backend = backend


def is_compiling() -> bool:
    """Return whether fused functions of this process run compiled."""
    return compiler.backend is not None


@functools.cache
def _compiled(function: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
    # Passes differ in their rows alone. With the second number of rows, torch compiles for any number of them
    # and leaves the other sizes fixed, which makes better kernels than leaving all sizes open at first.
    compiled: Callable[..., Any] = torch.compile(function, backend=backend, dynamic=None)
    return compiled


def wide(values: Tensor) -> Tensor:
    """Return values in at least float32, in which fused functions compute."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
