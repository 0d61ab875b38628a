"""A trained method with other settings, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from megatron_ext.methods.base import PonderMethod


@contextmanager
def changed_settings(method: PonderMethod, **changes: Any) -> Iterator[None]:
    """Let a method work with other settings, such as ``pruning_threshold``; those it had come back."""
    before = method.config
    method.config = replace(before, **changes)
    try:
        yield
    finally:
        method.config = before
