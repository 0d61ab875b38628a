"""Passes without gradients, fewer sweeps and fewer rows compute on layouts what one process computes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from tests.support.layout_steps import (
    Compared,
    Values,
    built_model,
    compare,
    run_step,
    values_of_step,
    wrapped,
)
from tests.support.layouts import LAYOUTS, MODELS, ONE_PROCESS
from tests.support.ranks import SharedRanks, run_alone
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.multiprocess

LARGEST_ERROR = 2e-5
SWEEPS = 4
FULL: dict[str, Any] = {}
# The tolerance is within reach of these models, so that sweeps are left out.
SETTINGS: dict[str, dict[str, Any]] = {
    "one": {"gradient_passes": 1},
    "two": {"gradient_passes": 2},
    "five": {"gradient_passes": 5},
    "early": {"sweep_tolerance": 0.1},
    "both": {"gradient_passes": 2, "sweep_tolerance": 0.1},
    "pruned": {"skips_pruned_rows": True},
}
# The router starts with about equal shares, so that this lies among the tail masses of the second thought.
PRUNING: dict[str, Any] = {"pruning_threshold": 0.33}


class Case(NamedTuple):
    """A model on a layout, with settings by name."""

    model: str
    layout: str
    recompute: str
    settings: str


LLAMA, SOFTMAX, TWO, AUTHORS = (
    "ponderlm3, llama",
    "ponderlm2, neox softmax",
    "ponderlm2, llama",
    "ponderlm3, llama authors",
)
CASES = [
    Case(TWO, "PP2", "none", "one"),
    Case(LLAMA, "PP2", "none", "two"),
    Case(LLAMA, "PP2", "per_pass", "five"),
    Case(SOFTMAX, "PP2", "none", "two"),
    Case(AUTHORS, "PP2", "full", "two"),
    Case(LLAMA, "TP2", "none", "two"),
    Case(LLAMA, "TP2+SP", "per_pass", "two"),
    Case(TWO, "TP2+SP", "none", "both"),
    Case(LLAMA, "TP2", "none", "early"),
    Case(TWO, "DP2", "none", "both"),
    Case(LLAMA, "DP2", "per_pass", "early"),
    Case(LLAMA, "TP2+SPxPP2", "none", "two"),
    Case(SOFTMAX, "PP4", "none", "two"),
    Case(AUTHORS, "TP2", "none", "pruned"),
    Case(AUTHORS, "DP2", "per_pass", "pruned"),
]


@pytest.fixture(scope="module")
def values_of_one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process computes, by model and settings."""
    file = tmp_path_factory.mktemp("values") / "steps.pt"
    run_alone(write_values, sorted({(case.model, case.settings) for case in CASES}), file)
    return file


@pytest.fixture(scope="module")
def side_by_side(ranks: SharedRanks, values_of_one_process: Path) -> SideBySide[Case]:
    return SideBySide(CASES, compare_with_one_process, values_of_one_process, ranks)


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_a_layout_computes_what_one_process_computes(case: Case, side_by_side: SideBySide[Case]) -> None:
    for found in side_by_side.compared(case):
        assert found.complaint(LARGEST_ERROR) == ""


def test_the_settings_change_what_is_computed(values_of_one_process: Path) -> None:
    values = torch.load(values_of_one_process)

    for case in CASES:
        steps = values[case.model, case.settings]
        assert compare(steps["with"], steps["full"]).complaint(LARGEST_ERROR) != "", case


def write_values(cases: list[tuple[str, str]], file: Path) -> None:
    """Compute one process's values of each case, and those of the full method."""
    groups = initialize_groups()
    try:
        torch.save(
            {
                (model, name): {
                    "with": values_of(model, "", "none", SETTINGS[name], groups),
                    "full": values_of(model, "", "none", FULL, groups),
                }
                for model, name in cases
            },
            file,
        )
    finally:
        destroy_groups()


def compare_with_one_process(cases: Sequence[Case], file: Path) -> list[Compared]:
    """Compare this rank's values in cases of one layout with those of one process."""
    expected = torch.load(file, mmap=True)
    shape = LAYOUTS[cases[0].layout]
    groups = initialize_groups(tensor=shape.tensor, pipeline=shape.pipeline)
    try:
        return [
            compare(
                values_of(case.model, case.layout, case.recompute, SETTINGS[case.settings], groups),
                expected[case.model, case.settings]["with"],
            )
            for case in cases
        ]
    finally:
        destroy_groups()


def values_of(
    model: str, layout: str, recompute: str, settings: dict[str, Any], groups: ParallelGroups
) -> Values:
    """Return loss, sums and gradients of a step."""
    shape = LAYOUTS[layout] if layout else ONE_PROCESS
    further = {"ponder": PRUNING} if "skips_pruned_rows" in settings else {}
    config = MODELS[model].config(shape, parallel={"recompute": recompute}, **further)
    module, _ = built_model(config, groups)
    ddp = wrapped(module)
    return values_of_step(ddp, run_step(ddp, SWEEPS, groups, **settings), groups)
