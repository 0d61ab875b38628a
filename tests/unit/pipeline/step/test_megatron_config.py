"""The configuration as Megatron receives it."""

import math
from typing import Any

import pytest
import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_ext.schedule.muon import MuonSettings
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.step.megatron_config import (
    ddp_config,
    muon_settings,
    optimizer_config,
    scheduler_arguments,
)
from tests.unit.pipeline.config.settings import changed_settings


def config_with(**changes: Any) -> RunConfig:
    return build_config(changed_settings(**changes))


def schedule(**optimizer: Any) -> tuple[torch.optim.Optimizer, OptimizerParamScheduler]:
    """Return an optimizer of one weight, and Megatron's scheduler with these settings and a rate of 1."""
    settings = {f"optimizer__{name}": value for name, value in {"lr": 1.0, **optimizer}.items()}
    stepped = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    return stepped, OptimizerParamScheduler(stepped, **scheduler_arguments(config_with(**settings)))


def rates(num_iterations: int, **optimizer: Any) -> list[float]:
    """Return the learning rate of each of the first iterations."""
    stepped, scheduler = schedule(**optimizer)
    seen = []
    for _ in range(num_iterations):
        seen.append(stepped.param_groups[0]["lr"])
        scheduler.step(increment=1)
    return seen


def test_cosine_warms_up_then_falls_to_the_minimum() -> None:
    seen = rates(13, min_lr=0.1, lr_decay_style="cosine", lr_warmup_iters=2, lr_decay_iters=10)

    assert seen[:3] == [0.0, 0.5, 1.0]
    assert seen[6] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert seen[10:] == pytest.approx([0.1, 0.1, 0.1])


def test_wsd_stays_until_its_final_decay() -> None:
    seen = rates(
        12, min_lr=0.0, lr_decay_style="wsd", lr_warmup_iters=1, lr_decay_iters=10, wsd_decay_iters=4
    )

    assert seen[1:7] == [1.0] * 6
    assert seen[8] == pytest.approx(2 * math.sqrt(0.5) - 1)
    assert seen[10:] == pytest.approx([0.0, 0.0])


def test_the_decay_of_wsd_may_have_another_form() -> None:
    seen = rates(11, lr_decay_style="wsd", lr_decay_iters=10, wsd_decay_iters=4, wsd_decay_style="linear")

    assert seen[6:] == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_linear_and_constant() -> None:
    assert rates(3, lr_decay_style="linear", lr_decay_iters=4) == pytest.approx([1.0, 0.75, 0.5])
    assert rates(3, lr_decay_style="constant", lr_decay_iters=4) == [1.0, 1.0, 1.0]


def test_the_schedule_ends_with_the_run_unless_configured() -> None:
    arguments = scheduler_arguments(config_with(training__train_iters=77))

    assert arguments["lr_decay_steps"] == 77


def test_a_resumed_schedule_takes_its_position_from_the_checkpoint_and_the_rest_from_the_config() -> None:
    _, saved = schedule(lr=1.0, lr_decay_style="linear", lr_decay_iters=10)
    saved.step(increment=5)
    stepped, resumed = schedule(lr=2.0, lr_decay_style="linear", lr_decay_iters=20)

    resumed.load_state_dict(saved.state_dict())

    assert stepped.param_groups[0]["lr"] == pytest.approx(1.5)


def test_every_setting_of_the_optimizer_reaches_megatron() -> None:
    values = {
        "lr": 2e-3,
        "min_lr": 1e-4,
        "weight_decay": 0.2,
        "adam_beta1": 0.8,
        "adam_beta2": 0.9,
        "adam_eps": 1e-6,
        "clip_grad": 0.5,
    }

    found = optimizer_config(config_with(**{f"optimizer__{name}": value for name, value in values.items()}))

    assert {name: getattr(found, name) for name in values} == values
    assert found.optimizer == "adam"


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_reaches_the_optimizer(precision: str, dtype: torch.dtype) -> None:
    found = optimizer_config(config_with(training__precision=precision))

    assert (found.params_dtype, found.bf16) == (dtype, precision == "bf16")


@pytest.mark.parametrize("is_shared", [True, False])
def test_optimizer_and_gradients_agree_on_who_holds_the_state(is_shared: bool) -> None:
    config = config_with(parallel__use_distributed_optimizer=is_shared)

    assert optimizer_config(config).use_distributed_optimizer == is_shared
    assert ddp_config(config.parallel).use_distributed_optimizer == is_shared


@pytest.mark.parametrize("is_shared", [True, False])
def test_muon_shares_whole_weights_and_never_the_gradient_buffer(is_shared: bool) -> None:
    config = config_with(optimizer__name="muon", parallel__use_distributed_optimizer=is_shared)

    assert not optimizer_config(config).use_distributed_optimizer
    assert not ddp_config(config.parallel, optimizer="muon").use_distributed_optimizer


def test_every_setting_of_muon_reaches_it() -> None:
    given = {"name": "muon", "lr": 2e-3, "min_lr": 5e-4, "muon_lr": 8e-3, "muon_momentum": 0.8}
    settings = {f"optimizer__{name}": value for name, value in given.items()}
    found = muon_settings(config_with(**settings, optimizer__muon_num_ns_steps=3).optimizer)

    assert found == MuonSettings(lr=8e-3, min_lr=2e-3, momentum=0.8, num_ns_steps=3)
    assert muon_settings(config_with().optimizer) is None


def test_gradients_collect_in_float32_and_overlap_where_configured() -> None:
    found = [
        ddp_config(
            config_with(
                ponder__method="vanilla",
                ponder__num_latent_thoughts=0,
                parallel__overlap_grad_reduce=overlaps,
            ).parallel
        )
        for overlaps in (True, False)
    ]

    assert [one.overlap_grad_reduce for one in found] == [True, False]
    assert all(one.grad_reduce_in_fp32 for one in found)
