"""The roofline beside measured steps, and beside what it must be where one thing alone counts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import build_config, load_config
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account
from pipeline.cost.peaks import CPU, DEVICES, GIB, Bandwidth, DensePeak, Device
from pipeline.cost.plan import Assumptions, plan_run
from pipeline.cost.roofline import HOST_SECONDS_PER_LAUNCH, LINK_SHARE, PRODUCTS_SHARE, step_time
from pipeline.cost.work import PRESENT, Counts, LayerWork
from tests.unit.pipeline.config.settings import changed_settings

RECIPES = Path(__file__).parents[4] / "pipeline" / "recipes"
VOCAB_SIZE = 50_277
H200, H100 = DEVICES["h200-141g"], DEVICES["h100-80g"]
ONE_RANK = ("parallel.tensor=1", "parallel.sequence_parallel=false", "parallel.data=1")


def _layer(forward: tuple[float, float], backward: tuple[float, float]) -> LayerWork:
    """Values per row and channel of the hidden size, and launches."""
    counts = [Counts(hidden=hidden, launches=launches) for hidden, launches in (forward, backward)]
    return LayerWork(forward=counts[0], backward=counts[1])


# Of the program that was measured, by a rehearsal of it: it ran more kernels than the present one.
MEASURED = replace(
    PRESENT,
    llama=_layer((56, 36), (79, 43)),
    gpt_neox=_layer((50, 40), (70, 46)),
    weighted=_layer((7, 14), (8, 9)),
    kept=_layer((7, 4), (8, 8)),
    loss_forward=50,
    loss_backward=30,
    parameter_bytes=24,
    owned_bytes=64,
    update_launches=6,
)


def measured_run(name: str, micro_batch: int, number: int, *overrides: str) -> RunConfig:
    batch = f"training.global_batch_size={micro_batch * number}"
    path = RECIPES / f"{name}.yaml"
    return load_config(path, [f"training.micro_batch_size={micro_batch}", batch, *ONE_RANK, *overrides])


def sweeps(number: int) -> tuple[str, str]:
    return "ponder.random_jacobi_iterations=null", f"ponder.num_jacobi_iterations={number}"


CUDNN, FLASH = "training.attention=cudnn", "training.attention=flash"


@pytest.mark.parametrize(
    ("run", "milliseconds"),
    [
        (measured_run("llama_410m_vanilla", 4, 2, CUDNN), 179),
        (measured_run("llama_410m_ponderlm2", 1, 2, CUDNN, *sweeps(3)), 1046),
        (measured_run("llama_410m_ponderlm3", 1, 2, CUDNN, *sweeps(3)), 1388),
        (measured_run("llama_410m_ponderlm3", 1, 2, FLASH, *sweeps(3)), 1575),
        (measured_run("llama_410m_adaponderlm", 1, 1, CUDNN), 344),
        (
            measured_run("pythia_2.8b_ponderlm3", 1, 1, CUDNN, *sweeps(3), "parallel.recompute=per_pass"),
            2929,
        ),
        (measured_run("ponderlm3_70m", 8, 2, CUDNN, *sweeps(4)), 1109),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_steps_measured_on_an_h200_take_as_long_as_estimated(run: RunConfig, milliseconds: float) -> None:
    # docs/results.md, "One NVIDIA H200"; docs/plan.md lists the estimates.
    vocab_size = run.model.vocab_size or VOCAB_SIZE
    estimated = step_time(run, vocab_size, H200, program=MEASURED)

    assert estimated is not None
    assert 1e3 * estimated.total == pytest.approx(milliseconds, rel=0.1)
