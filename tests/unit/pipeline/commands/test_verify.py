from typing import Any

import pytest
import typer

from megatron_ext.ponder.config import Method
from pipeline.commands.verify import _refuse_unused
from pipeline.config.ponder_section import PonderSection

UNUSED: dict[str, Any] = {"threshold": None, "jacobi_iterations": None, "run_bound": None}


@pytest.mark.parametrize(
    ("method", "option", "named"),
    [
        ("vanilla", {"threshold": [0.1]}, "--threshold"),
        ("ponderlm2", {"threshold": [0.1]}, "--threshold"),
        ("adaponderlm", {"jacobi_iterations": [2]}, "--jacobi-iterations"),
        ("loop", {"run_bound": 0.1}, "--run-bound"),
        ("ponderlm3", {"jacobi_iterations": [5], "run_bound": 0.1}, "--run-bound"),
    ],
)
def test_options_that_a_method_has_no_use_for_are_refused(
    method: str, option: dict[str, Any], named: str
) -> None:
    with pytest.raises(typer.BadParameter) as raised:
        _refuse_unused(PonderSection(method=Method(method)), **(UNUSED | option))

    assert raised.value.param_hint == named


@pytest.mark.parametrize("method", Method)
def test_no_method_needs_an_option(method: Method) -> None:
    _refuse_unused(PonderSection(method=method), **UNUSED)


def test_a_bound_for_the_runs_own_sweeps_goes_with_them() -> None:
    ponder = PonderSection(method=Method.PONDERLM3)

    _refuse_unused(ponder, **(UNUSED | {"run_bound": 0.1}))
    _refuse_unused(ponder, **(UNUSED | {"jacobi_iterations": [2, 5], "run_bound": 0.1}))
