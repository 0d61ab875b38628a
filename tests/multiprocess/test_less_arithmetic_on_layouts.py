"""Passes without gradients, fewer sweeps and fewer rows compute on layouts what one process computes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from tests.support.layout_steps import Values, built_model, compare, run_step, values_of_step, wrapped
from tests.support.layouts import LAYOUTS, MODELS, ONE_PROCESS
from tests.support.ranks import SharedRanks, run_alone

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
LLAMA, SOFTMAX, TWO, AUTHORS = (
    "ponderlm3, llama",
    "ponderlm2, neox softmax",
    "ponderlm2, llama",
    "ponderlm3, llama authors",
)
CASES = [
    (TWO, "PP2", "none", "one"),
    (LLAMA, "PP2", "none", "two"),
    (LLAMA, "PP2", "per_pass", "five"),
    (SOFTMAX, "PP2", "none", "two"),
    (AUTHORS, "PP2", "full", "two"),
    (LLAMA, "TP2", "none", "two"),
    (LLAMA, "TP2+SP", "per_pass", "two"),
    (TWO, "TP2+SP", "none", "both"),
    (LLAMA, "TP2", "none", "early"),
    (TWO, "DP2", "none", "both"),
    (LLAMA, "DP2", "per_pass", "early"),
    (LLAMA, "TP2+SPxPP2", "none", "two"),
    (SOFTMAX, "PP4", "none", "two"),
    (AUTHORS, "TP2", "none", "pruned"),
    (AUTHORS, "DP2", "per_pass", "pruned"),
]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process computes, by model and settings."""
    file = tmp_path_factory.mktemp("references") / "steps.pt"
    run_alone(write_values, sorted({(model, name) for model, _, _, name in CASES}), file)
    return file


@pytest.mark.parametrize(("model", "layout", "recompute", "name"), CASES)
def test_a_layout_computes_what_one_process_computes(
    ranks: SharedRanks, references: Path, model: str, layout: str, recompute: str, name: str
) -> None:
    for found in ranks.run(
        complaint_about, LAYOUTS[layout].world_size, model, layout, recompute, name, references
    ):
        assert found == ""


def test_the_settings_change_what_is_computed(references: Path) -> None:
    values = torch.load(references)

    for model, _, _, name in CASES:
        steps = values[model, name]
        assert compare(steps["with"], steps["full"]).complaint(LARGEST_ERROR) != "", (model, name)


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


def complaint_about(model: str, layout: str, recompute: str, name: str, file: Path) -> str:
    """Compare this rank's values with those of one process."""
    shape = LAYOUTS[layout]
    expected = torch.load(file)[model, name]["with"]
    groups = initialize_groups(tensor=shape.tensor, pipeline=shape.pipeline)
    try:
        return compare(values_of(model, layout, recompute, SETTINGS[name], groups), expected).complaint(
            LARGEST_ERROR
        )
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
