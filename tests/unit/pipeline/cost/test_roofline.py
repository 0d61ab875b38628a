"""The roofline beside measured steps, and beside what it must be where one thing alone counts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account
from pipeline.cost.peaks import CPU, DEVICES, GIB, Bandwidth, DensePeak, Device
from pipeline.cost.plan import Assumptions, plan_run
from pipeline.cost.rank_sizes import rank_sizes
from pipeline.cost.roofline import (
    HOST_SECONDS_PER_LAUNCH,
    LARGE_MEMORY_SHARE,
    LINK_SHARE,
    PRODUCTS_SHARE,
    StepTime,
    step_time,
)
from pipeline.cost.traffic import rank_traffic
from pipeline.cost.work import FUSED, MEASURED, Counts, LayerWork

RECIPES = Path(__file__).parents[4] / "pipeline" / "recipes"
VOCAB_SIZE = 50_277
H100, H200 = DEVICES["h100-80g"], DEVICES["h200-141g"]
CUDNN, FLASH = "training.attention=cudnn", "training.attention=flash"
ONE_RANK = ("parallel.tensor=1", "parallel.sequence_parallel=false", "parallel.data=1")
LIMITLESS = 1e30
NOTHING = LayerWork(forward=Counts(), backward=Counts())
NO_WORK = replace(
    MEASURED,
    llama=NOTHING,
    gpt_neox=NOTHING,
    weighted=NOTHING,
    kept=NOTHING,
    steps=NOTHING,
    pass_launches=0.0,
    update_launches=0.0,
)


def run_of(name: str, micro_batch: int = 1, number: int = 1, *overrides: str) -> RunConfig:
    """A recipe on one rank, so many sequences in so many micro-batches."""
    batch = f"training.global_batch_size={micro_batch * number}"
    path = RECIPES / f"{name}.yaml"
    return load_config(path, [f"training.micro_batch_size={micro_batch}", *ONE_RANK, batch, *overrides])


def sweeps(number: int) -> tuple[str, str]:
    return "ponder.random_jacobi_iterations=null", f"ponder.num_jacobi_iterations={number}"


def unfused(run: RunConfig) -> RunConfig:
    """The same run operation by operation."""
    return run.model_copy(update={"training": run.training.model_copy(update={"fused": "never"})})


def time_of(run: RunConfig, device: Device = H200, **settings: Any) -> StepTime:
    found = step_time(run, run.model.vocab_size or VOCAB_SIZE, device, **settings)
    assert found is not None
    return found


# As it was measured, before the recipe had a loss on each step.
PER_PASS_2_8B = ("parallel.recompute=per_pass", "ponder.step_loss_weight=0")


@pytest.mark.parametrize(
    ("run", "milliseconds"),
    [
        (run_of("llama_410m_vanilla", 4, 2, CUDNN), 179),
        (run_of("llama_410m_ponderlm2", 1, 2, CUDNN, *sweeps(3)), 1046),
        (run_of("llama_410m_ponderlm3", 1, 2, CUDNN, *sweeps(3)), 1388),
        (run_of("llama_410m_ponderlm3", 1, 2, FLASH, *sweeps(3)), 1575),
        (run_of("llama_410m_adaponderlm", 1, 1, CUDNN), 344),
        (
            run_of("pythia_2.8b_ponderlm3", 1, 1, CUDNN, *sweeps(3), *PER_PASS_2_8B),
            2929,
        ),
        (run_of("ponderlm3_70m", 8, 2, CUDNN, *sweeps(4), "model.vocab_size=32768"), 1109),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_steps_measured_on_an_h200_take_as_long_as_estimated(run: RunConfig, milliseconds: float) -> None:
    # docs/results.md, "One NVIDIA H200"; docs/plan.md lists the estimates.
    assert 1e3 * time_of(unfused(run), program=MEASURED).total == pytest.approx(milliseconds, rel=0.1)


def test_the_measured_kernels_take_as_long_as_estimated() -> None:
    # Of a PonderLM-3 step: 1,081 ms in kernels, 41 % of them in attention and 20 % in products.
    run = unfused(run_of("llama_410m_ponderlm3", 1, 2, CUDNN, *sweeps(3)))
    parts = time_of(run, program=MEASURED)

    assert 1e3 * parts.attention == pytest.approx(0.41 * 1081, rel=0.05)
    assert 1e3 * parts.products == pytest.approx(0.20 * 1081, rel=0.05)
    assert 1e3 * (parts.total - parts.launches) == pytest.approx(1081, rel=0.1)


def test_without_all_else_a_step_takes_its_products() -> None:
    run = run_of("llama_410m_vanilla", 4, 2)
    boundless = replace(H200, bandwidth=Bandwidth(memory=LIMITLESS, link=LIMITLESS, network=LIMITLESS))
    parts = time_of(run, boundless, program=NO_WORK)

    # 6 operations for each weight and token, the head included.
    shape = flops_account(run, VOCAB_SIZE).shape
    weights = shape.num_layers * shape.layer_weights + shape.vocabulary_weights
    expected = 6 * weights * 8 * 2048 / (PRODUCTS_SHARE * 989.4e12)
    assert parts.total - parts.attention == pytest.approx(expected)
    assert parts.launches == parts.exchange == parts.bubble == 0


@pytest.mark.parametrize(("mixture", "forward"), [("softmax", 2), ("top_k", 3)])
def test_mixtures_compute_logits_again_where_functions_are_fused(mixture: str, forward: int) -> None:
    boundless = replace(H200, bandwidth=Bandwidth(memory=LIMITLESS, link=LIMITLESS, network=LIMITLESS))
    run = run_of("ponderlm_70m", 8, 1, f"ponder.mixture={mixture}")
    fused, plain = (time_of(each, boundless) for each in (run, unfused(run)))

    # Three mixtures and one loss, in products with head or embedding: forward, and twice as many in backward.
    assert fused.vocabulary / plain.vocabulary == pytest.approx((3 * (forward + 5) + 3) / (3 * 6 + 3))
    assert fused.products == plain.products


def test_parts_of_mixtures_add_to_the_gradients_of_head_and_embedding() -> None:
    run = run_of("ponderlm_70m", 8, 1)
    peak = DensePeak(bfloat16_flops=LIMITLESS, float32_flops=LIMITLESS)
    parts = time_of(
        run, replace(H200, peak=peak), program=replace(FUSED, mixture_forward=0, mixture_backward=0)
    )

    # Rows of 50,304 logits, of which 333 have 2^24.
    num_parts = -(-8 * 2048 // 333)
    of_loss = 8 * 2048 * 50_304 * (FUSED.loss_forward + FUSED.loss_backward)
    added = 3 * num_parts * 2 * 8 * 50_304 * 512
    assert parts.vocabulary == pytest.approx((of_loss + added) / (LARGE_MEMORY_SHARE * 4.8e12))


def test_fused_functions_move_less_and_take_fewer_launches() -> None:
    run = run_of("llama_410m_ponderlm3", 1, 2)
    fused, plain = time_of(run), time_of(unfused(run))

    assert fused.elementwise < plain.elementwise
    assert fused.launches < plain.launches
    assert fused.vocabulary < plain.vocabulary
    assert fused.products == plain.products
    assert fused.attention == plain.attention
    assert fused.update == plain.update


def test_a_small_model_takes_the_time_of_its_launches() -> None:
    run = run_of("tiny_vanilla", 1, 2)
    peak = DensePeak(bfloat16_flops=LIMITLESS, float32_flops=LIMITLESS)
    fast = replace(H200, peak=peak, bandwidth=Bandwidth(memory=LIMITLESS, link=LIMITLESS, network=LIMITLESS))
    parts = time_of(run, fast)

    counts = FUSED.gpt_neox if run.model.architecture == "gpt_neox" else FUSED.llama
    of_layers = run.model.num_layers * (counts.forward.launches + counts.backward.launches)
    launches = 2 * (of_layers + 2 * FUSED.pass_launches)
    assert parts.launches == pytest.approx(launches * HOST_SECONDS_PER_LAUNCH)
    assert parts.total == pytest.approx(parts.launches + parts.update)


@pytest.mark.parametrize("axis", ["tensor", "context"])
def test_an_axis_within_a_machine_costs_its_bytes_over_a_link(axis: str) -> None:
    run = run_of("llama_410m_ponderlm3", 1, 2, f"parallel.{axis}=2")
    # The traffic is of the largest J, which all steps have then.
    run = run.model_copy(update={"ponder": run.ponder.model_copy(update={"random_jacobi_iterations": None})})
    received = getattr(rank_traffic(rank_sizes(run, VOCAB_SIZE)), axis)

    assert time_of(run, H100).exchange == pytest.approx(received / (LINK_SHARE * 450e9))


def test_more_micro_batches_take_more_time_but_for_the_update() -> None:
    one, four = (time_of(run_of("llama_410m_adaponderlm", 1, number)) for number in (1, 4))

    assert four.total - four.update == pytest.approx(4 * (one.total - one.update))
    assert four.update == one.update


def test_a_utilisation_of_ones_own_replaces_the_roofline() -> None:
    run = run_of("llama_410m_vanilla", 4, 2)
    own = Assumptions(device=H200, reserve_bytes=6 * GIB, mfu=0.4)
    assumed, estimated = (plan_run(run, VOCAB_SIZE, each) for each in (own, replace(own, mfu=None)))

    assert (assumed.mfu, assumed.step_time) == (0.4, None)
    assert estimated.step_time is not None
    assert estimated.tokens_per_second is not None
    assert estimated.tokens_per_second == pytest.approx(8 * 2048 / estimated.step_time.total)
    speed = estimated.training_flops.model * estimated.tokens_per_second
    assert estimated.mfu == pytest.approx(speed / 989.4e12)


def test_nothing_is_estimated_for_a_device_of_unknown_speed() -> None:
    cpu = Device(name=CPU, memory_bytes=40 * GIB, peak=None)
    plan = plan_run(run_of("llama_410m_vanilla"), VOCAB_SIZE, Assumptions(device=cpu, reserve_bytes=GIB))

    found = (plan.mfu, plan.hfu, plan.step_time, plan.tokens_per_second, plan.days)
    assert found == (None,) * 5


def test_a_large_step_is_bound_by_the_memory_of_logits_where_nothing_else_counts() -> None:
    run = run_of("llama_410m_vanilla", 4, 1)
    peak = DensePeak(bfloat16_flops=LIMITLESS, float32_flops=LIMITLESS)
    parts = time_of(run, replace(H200, peak=peak), program=NO_WORK)

    per_element = MEASURED.loss_forward + MEASURED.loss_backward
    expected = 4 * 2048 * 50_304 * per_element / (LARGE_MEMORY_SHARE * 4.8e12)
    assert parts.vocabulary == pytest.approx(expected)
