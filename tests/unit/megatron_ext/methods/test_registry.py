"""Every method that can be named can be built."""

from megatron_ext.methods.registry import METHODS
from megatron_ext.ponder.config import Method


def test_every_method_has_a_class_of_its_own() -> None:
    assert set(METHODS) == set(Method)
    assert len(set(METHODS.values())) == len(Method)
