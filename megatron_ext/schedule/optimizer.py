"""Megatron's optimizer over a wrapped model: its parameter groups, and its step in two halves."""

from collections.abc import Sequence
from typing import Any

from megatron.core.optimizer import (
    OptimizerConfig,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer_config import ParamKey

from megatron_ext.protocols import MegatronOptimizer, ParameterGroups, WrappedModel
from megatron_ext.schedule.gradients import finalize_gradients
from megatron_ext.schedule.muon import MATRICES, MuonSettings, build_muon_and_adamw

__all__ = [
    "apply_update",
    "build_optimizer",
    "connect_schedule",
    "learning_rates",
    "muon_learning_rate",
    "prepare_update",
]


def build_optimizer(
    model_chunks: Sequence[WrappedModel],
    config: OptimizerConfig,
    *,
    new_parameters_lr_mult: float | None = None,
    muon: MuonSettings | None = None,
) -> MegatronOptimizer:
    """Build Megatron's optimizer over wrapped model chunks.

    Weight decay applies to matrices only: biases and all one-dimensional parameters (norms) are exempt. bf16
    keeps float32 master weights in the optimizer.

    Args:
        model_chunks: this rank's stage; its ``use_distributed_optimizer`` must be that of `config`.
        config: Megatron's settings.
        new_parameters_lr_mult: learning rate of the method's own weights (``ponder.*``) as a multiple of the
            backbone's; None puts them into the backbone's groups.
        muon: of the matrices of the layers; None: AdamW updates these too.
    """
    overrides: dict[Any, Any] = dict(get_standard_config_overrides(config))
    if new_parameters_lr_mult is not None:
        # Marked as Megatron marks its decoupled learning rate: by that mark, not by its rate, the state in a
        # checkpoint finds its group, so that a resumed run may change the rate.
        overrides[ParamKey(name="*ponder.*")] = {
            "is_decoupled_lr": True,
            "max_lr": config.lr * new_parameters_lr_mult,
            "min_lr": config.min_lr * new_parameters_lr_mult,
        }
    if muon is not None:
        return build_muon_and_adamw(model_chunks, config, muon, overrides)
    optimizer: MegatronOptimizer = get_megatron_optimizer(
        config, list(model_chunks), config_overrides=overrides, use_gloo_process_groups=False
    )
    return optimizer


def learning_rates(optimizer: ParameterGroups) -> tuple[float, float | None]:
    """Return the rate of AdamW on the backbone, and that of the method's own weights where they have one."""
    rates = {
        bool(group["is_decoupled_lr"]): float(group["lr"])
        for group in optimizer.param_groups
        if not group.get(MATRICES)
    }
    return rates[False], rates.get(True)


def muon_learning_rate(optimizer: ParameterGroups) -> float | None:
    """Return the rate of Muon, or None where AdamW updates all weights."""
    return next((float(group["lr"]) for group in optimizer.param_groups if group.get(MATRICES)), None)


def prepare_update(optimizer: MegatronOptimizer) -> float | None:
    """Copy the reduced gradients to where the update reads them, without changing the weights.

    Returns:
        The norm of all gradients together, equal on all ranks; None where loss scaling has found that they
        are not finite.
    """
    if optimizer.prepare_grads():
        return None
    return float(optimizer.get_grad_norm())


def apply_update(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Clip the prepared gradients and update the weights.

    Together with :func:`prepare_update` this is Megatron's ``step()``, split so that the caller can look at
    the norm before any weight changes.

    Args:
        optimizer: after :func:`prepare_update`.
        grad_norm: what :func:`prepare_update` has returned.
    """
    for part in optimizer.chained_optimizers:
        parameters = [] if part.is_stub_optimizer else part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            clip_grad_by_total_norm_fp32(parameters, max_norm=part.config.clip_grad, total_norm=grad_norm)
    optimizer.step_with_ready_grads()


def connect_schedule(ddp_model: WrappedModel, optimizer: MegatronOptimizer) -> None:
    """Tell Megatron's forward-backward schedule how to reduce this model's gradients and scale its loss."""
    config = ddp_model.config
    config.finalize_model_grads_func = finalize_gradients
    config.grad_scale_func = optimizer.scale_loss
    if ddp_model.ddp_config.overlap_grad_reduce:
        config.no_sync_func = ddp_model.no_sync
