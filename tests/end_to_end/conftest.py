"""Fixtures of the tests of whole commands."""

from tests.support.tiny_run import recipe, trained

__all__ = ["recipe", "trained"]
