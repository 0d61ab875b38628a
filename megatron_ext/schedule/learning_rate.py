"""The learning rate by iteration: Megatron's schedule, and what it has set."""

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["ScheduleSettings", "build_scheduler", "learning_rates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSettings:
    """Learning rate by iteration: linear warm-up to ``lr``, then the decay to ``min_lr``.

    A run that continues trained weights is warmed up again and decays again (Ibrahim et al., 2024, arXiv
    2403.08763) from wherever ``lr_warmup_init`` says.
    """

    lr: float
    min_lr: float = 0.0
    lr_decay_style: Literal["cosine", "wsd", "constant", "linear"] = "cosine"
    lr_warmup_iters: int = 0
    lr_warmup_init: float = 0.0
    """Rate at which the warm-up begins, at most ``lr``."""
    lr_decay_iters: int
    """Iteration at which ``min_lr`` is reached, warm-up included; above ``lr_warmup_iters``."""
    wsd_decay_iters: int | None = None
    """Length of the final decay; needed by wsd alone."""
    wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = "exponential"
    weight_decay: float = 0.1


def build_scheduler(optimizer: Any, settings: ScheduleSettings) -> Any:
    """Build Megatron's ``OptimizerParamScheduler``; call ``step(increment=1)`` after each iteration.

    As in Megatron, iteration n is trained with the rate of n - 1 finished ones: with warm-up the first is
    ``lr_warmup_init``.
    A loaded checkpoint sets the count alone; rates and lengths stay those of ``settings``.
    """
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    is_wsd = settings.lr_decay_style == "wsd"
    return OptimizerParamScheduler(
        optimizer,
        init_lr=settings.lr_warmup_init,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=settings.lr_warmup_iters,
        lr_decay_steps=settings.lr_decay_iters,
        lr_decay_style="WSD" if is_wsd else settings.lr_decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=settings.lr_decay_iters,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
        wsd_decay_steps=settings.wsd_decay_iters,
        lr_wsd_decay_style=settings.wsd_decay_style if is_wsd else None,
    )


def learning_rates(optimizer: Any) -> tuple[float, float | None]:
    """Return the rate of the backbone, and that of the method's own weights where they have one.

    Args:
        optimizer: from :func:`build_optimizer`; every rank has all groups, be they empty.
    """
    rates = {bool(group["is_decoupled_lr"]): float(group["lr"]) for group in optimizer.param_groups}
    return rates[False], rates.get(True)
