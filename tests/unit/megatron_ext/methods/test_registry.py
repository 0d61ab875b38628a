"""Every place that knows which methods are built knows the same ones."""

from megatron_ext.methods.registry import METHODS
from pipeline.config.rules import AVAILABLE_METHODS
from pipeline.run_account import BUILT_METHODS


def test_the_configuration_allows_what_can_be_built() -> None:
    assert set(AVAILABLE_METHODS) == set(METHODS)


def test_what_can_be_built_has_a_cost_account() -> None:
    assert set(BUILT_METHODS) == set(METHODS)
