"""What moves the weights: AdamW, Megatron's optimizer around it, data-parallel gradients."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

__all__ = [
    "OptimizerSettings",
    "apply_update",
    "build_optimizer",
    "connect_schedule",
    "prepare_update",
    "wrap_ddp",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW, clipping, precision and whether data-parallel ranks share the optimizer's state."""

    lr: float
    min_lr: float = 0.0
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_grad: float = 1.0
    """Largest norm of all gradients together; 0 does not clip."""
    new_parameters_lr_mult: float | None = None
    """Learning rate of the method's own weights (``ponder.*``) as a multiple of the backbone's; None is one
    and the same group."""
    precision: Literal["fp32", "bf16"] = "fp32"
    use_distributed_optimizer: bool = True


def wrap_ddp(
    module: Any, *, use_distributed_optimizer: bool = True, overlap_grad_reduce: bool = False
) -> Any:
    """Wrap a MegatronModule into Megatron's DistributedDataParallel.

    Gradients collect in one float32 buffer (``param.main_grad``), whatever the parameters' precision. They
    are averaged over the data-parallel ranks, or summed where ``config.calculate_per_token_loss`` leaves the
    division to ``finalize_model_grads``.

    Args:
        module: model with a ``config``; already on its device and in its precision.
        use_distributed_optimizer: reduce-scatter gradients, for an optimizer whose state is spread over the
            data-parallel ranks.
        overlap_grad_reduce: reduce while the backward still runs. Counts how often each parameter's gradient
            hook fires, so it is wrong where weights are used a varying number of times in one backward.
    """
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlap_grad_reduce,
        use_distributed_optimizer=use_distributed_optimizer,
        # NCCL alone has an averaging reduction; scaling before a sum means the same on both backends.
        average_in_collective=False,
    )
    return DistributedDataParallel(config=module.config, ddp_config=ddp_config, module=module)


def build_optimizer(model_chunks: list[Any], settings: OptimizerSettings) -> Any:
    """Build Megatron's optimizer over wrapped model chunks.

    Weight decay applies to matrices only: biases and all one-dimensional parameters (norms) are exempt. bf16
    keeps float32 master weights in the optimizer.

    Args:
        model_chunks: from :func:`wrap_ddp`, whose ``use_distributed_optimizer`` must be the same.
        settings: see :class:`OptimizerSettings`.

    Returns:
        ``MegatronOptimizer``; its ``step()`` returns (updated, gradient norm, zeros or None).
    """
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    is_bf16 = settings.precision == "bf16"
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_eps=settings.adam_eps,
        clip_grad=settings.clip_grad,
        bf16=is_bf16,
        params_dtype=torch.bfloat16 if is_bf16 else torch.float32,
        use_distributed_optimizer=settings.use_distributed_optimizer,
    )
    return get_megatron_optimizer(config, model_chunks, config_overrides=_group_overrides(config, settings))


def _group_overrides(config: Any, settings: OptimizerSettings) -> dict[Any, Any]:
    """Return Megatron's own groups, and one for the method's own weights where they learn at another rate.

    The group is marked as Megatron marks its decoupled learning rate: by that mark, not by its rate, the
    state in a checkpoint finds it again, so that a resumed run may change the rate.
    """
    from megatron.core.optimizer import get_standard_config_overrides
    from megatron.core.optimizer.optimizer_config import ParamKey

    overrides: dict[Any, Any] = dict(get_standard_config_overrides(config))
    multiplier = settings.new_parameters_lr_mult
    if multiplier is not None:
        overrides[ParamKey(name="*ponder.*")] = {
            "is_decoupled_lr": True,
            "max_lr": settings.lr * multiplier,
            "min_lr": settings.min_lr * multiplier,
        }
    return overrides


def prepare_update(optimizer: Any) -> float | None:
    """Bring the reduced gradients to where the update takes them; the weights stay as they are.

    Args:
        optimizer: from :func:`build_optimizer`.

    Returns:
        The norm of all gradients together, equal on all ranks; None where loss scaling has found that they
        are not finite.
    """
    if optimizer.prepare_grads():
        return None
    return float(optimizer.get_grad_norm())


def apply_update(optimizer: Any, grad_norm: float) -> None:
    """Clip the prepared gradients and update the weights: with :func:`prepare_update` Megatron's ``step()``.

    Args:
        optimizer: from :func:`build_optimizer`.
        grad_norm: what :func:`prepare_update` has returned.
    """
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

    for part in optimizer.chained_optimizers:
        parameters = [] if part.is_stub_optimizer else part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            clip_grad_by_total_norm_fp32(parameters, max_norm=part.config.clip_grad, total_norm=grad_norm)
    optimizer.step_with_ready_grads()


def connect_schedule(ddp_model: Any, optimizer: Any) -> None:
    """Tell Megatron's forward-backward schedule how to reduce this model's gradients and scale its loss.

    Args:
        ddp_model: from :func:`wrap_ddp`.
        optimizer: from :func:`build_optimizer`.
    """
    from megatron_ext.schedule.gradients import finalize_gradients

    config = ddp_model.config
    config.finalize_model_grads_func = finalize_gradients
    config.grad_scale_func = optimizer.scale_loss
    if ddp_model.ddp_config.overlap_grad_reduce:
        config.no_sync_func = ddp_model.no_sync
