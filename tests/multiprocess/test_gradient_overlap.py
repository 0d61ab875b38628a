"""When gradients may be reduced while backward still runs, and what fails where they may not.

Megatron counts how often each weight reports a gradient in the first step; in later steps it reduces a bucket
of weights after as many reports. In one graph autograd sums all uses of a weight before it reports, so there
is always one report. Passes on pipeline stages and recomputed passes report one by one, and their number
changes with J.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.schedule.gradients import finalize_gradients
from pipeline.config.errors import ConfigError
from tests.support.layout_steps import (
    Values,
    built_model,
    compare,
    run_step,
    values_of_step,
    wrapped,
)
from tests.support.layouts import LAYOUTS, MODELS
from tests.support.ranks import SharedRanks

pytestmark = pytest.mark.multiprocess

LARGEST_ERROR = 2e-5
RISING, FALLING = (1, 3), (3, 1)
IN_ONE_GRAPH = [
    *((model, "DP2", "none") for model in MODELS if model.endswith(("llama", "neox"))),
    ("vanilla, neox tied", "DP2", "full"),
    ("ponderlm3, neox softmax", "DP2", "selective"),
    ("vanilla, llama", "DP2xPP2", "none"),
    ("pause, neox tied", "DP2xPP2", "per_pass"),
]
PIECE_BY_PIECE = [
    ("ponderlm3, llama", "DP2", "full"),
    ("ponderlm2, neox softmax", "DP2", "per_pass"),
    ("ponderlm3, llama", "DP2xPP2", "none"),
]
ONE_BUCKET, BUCKET_PER_WEIGHT = None, 1
# Megatron's own error.
NOT_ISSUED = "Communication call has not been issued"


@pytest.mark.parametrize(("model", "layout", "recompute"), IN_ONE_GRAPH)
def test_overlap_is_correct_where_every_weight_reports_once(
    ranks: SharedRanks, references: Path, model: str, layout: str, recompute: str
) -> None:
    allowed = {"recompute": recompute, "overlap_grad_reduce": True}
    MODELS[model].config(LAYOUTS[layout], parallel=allowed)
    sweeps = (1, 3, 2) if MODELS[model].sweeps else (0, 0)

    for bucket_size in (ONE_BUCKET, BUCKET_PER_WEIGHT):
        for complaints in _run(
            ranks, references, model, layout, recompute, sweeps, overlaps=True, bucket_size=bucket_size
        ):
            assert complaints == [""] * len(sweeps)


@pytest.mark.parametrize(("model", "layout", "recompute"), PIECE_BY_PIECE)
def test_overlap_reduces_too_early_when_j_rises(
    ranks: SharedRanks, references: Path, model: str, layout: str, recompute: str
) -> None:
    for first, second in _run(
        ranks, references, model, layout, recompute, RISING, overlaps=True, bucket_size=BUCKET_PER_WEIGHT
    ):
        assert first == ""
        assert "tensors differ" in second


@pytest.mark.parametrize(("model", "layout", "recompute"), PIECE_BY_PIECE)
def test_overlap_never_reduces_when_j_falls(
    ranks: SharedRanks, references: Path, model: str, layout: str, recompute: str
) -> None:
    for first, second in _run(
        ranks, references, model, layout, recompute, FALLING, overlaps=True, bucket_size=ONE_BUCKET
    ):
        assert first == ""
        assert NOT_ISSUED in second


@pytest.mark.parametrize("sweeps", [RISING, FALLING])
@pytest.mark.parametrize(("model", "layout", "recompute"), PIECE_BY_PIECE)
def test_reducing_once_after_the_last_backward_is_correct_for_every_j(
    ranks: SharedRanks,
    references: Path,
    model: str,
    layout: str,
    recompute: str,
    sweeps: tuple[int, ...],
) -> None:
    for complaints in _run(ranks, references, model, layout, recompute, sweeps, overlaps=False):
        assert complaints == ["", ""]


@pytest.mark.parametrize(("model", "layout", "recompute"), PIECE_BY_PIECE)
def test_settings_under_which_overlap_is_wrong_are_refused(model: str, layout: str, recompute: str) -> None:
    wrong = {"recompute": recompute, "overlap_grad_reduce": True}
    with pytest.raises(ConfigError, match=r"\boverlap_grad_reduce\b"):
        MODELS[model].config(LAYOUTS[layout], parallel=wrong)


def _run(
    ranks: SharedRanks,
    references: Path,
    model: str,
    layout: str,
    recompute: str,
    sweeps: tuple[int, ...],
    *,
    overlaps: bool,
    bucket_size: int | None = None,
) -> list[list[str]]:
    """Return by rank what is wrong with the gradients of each step, "" where nothing is."""
    case = (references, model, layout, recompute, sweeps, overlaps, bucket_size)
    return ranks.run(_complaints_of_steps, LAYOUTS[layout].world_size, *case)


def _complaints_of_steps(
    references: Path,
    model: str,
    layout: str,
    recompute: str,
    sweeps: tuple[int, ...],
    overlaps: bool,
    bucket_size: int | None,
) -> list[str]:
    expected = torch.load(references, mmap=True)[model, "fp32"]
    shape = LAYOUTS[layout]
    groups = initialize_groups(tensor=shape.tensor, pipeline=shape.pipeline)
    try:
        module, _ = built_model(MODELS[model].config(shape, parallel={"recompute": recompute}), groups)
        ddp = _overlapping(module, bucket_size) if overlaps else wrapped(module)
        return [_complaint(ddp, number, expected[number], groups) for number in sweeps]
    finally:
        destroy_groups()


def _overlapping(module: PonderModel, bucket_size: int | None) -> Any:
    """Wrap a model with Megatron's overlap, which the rules of the settings may forbid."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    naive = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, overlap_grad_reduce=True, bucket_size=bucket_size
    )
    ddp = DistributedDataParallel(config=module.config, ddp_config=naive, module=module)
    ddp.config.finalize_model_grads_func = finalize_gradients
    ddp.config.no_sync_func = ddp.no_sync
    return ddp


def _complaint(ddp: Any, num_jacobi_iterations: int, expected: Values, groups: ParallelGroups) -> str:
    error = ""
    try:
        statistics = run_step(ddp, num_jacobi_iterations, groups)
    except AssertionError as failed:
        error = str(failed)
    errors: list[str] = [""] * groups.world_size
    torch.distributed.all_gather_object(errors, error)
    if any(errors):
        return max(errors)
    return compare(values_of_step(ddp, statistics, groups), expected).complaint(LARGEST_ERROR)
