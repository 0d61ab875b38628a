"""Rules on the learning rate, and on evaluation during training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_ext.ponder.config import Method
from pipeline.config.errors import ConfigProblem, as_written
from pipeline.config.optimizer_section import OptimizerConfig

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


def _learning_rate(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.optimizer.min_lr > config.optimizer.lr:
        yield ConfigProblem(
            path="optimizer.min_lr",
            rule=f"must be at most optimizer.lr ({config.optimizer.lr})",
            value=str(config.optimizer.min_lr),
            cure=f"try {config.optimizer.lr / 10}",
        )


def _warmup(config: RunConfig) -> Iterator[ConfigProblem]:
    optimizer = config.optimizer
    decay_iters = optimizer.lr_decay_iters or config.training.train_iters
    limit = min(decay_iters, config.training.train_iters)
    if optimizer.lr_warmup_iters >= limit:
        yield ConfigProblem(
            path="optimizer.lr_warmup_iters",
            rule=f"must be below training.train_iters and optimizer.lr_decay_iters ({limit})",
            value=str(optimizer.lr_warmup_iters),
            cure=f"try {limit // 10}",
        )


def _muon(config: RunConfig) -> Iterator[ConfigProblem]:
    optimizer = config.optimizer
    if optimizer.name == "muon":
        return
    for name in ("muon_lr", "muon_momentum", "muon_num_ns_steps"):
        value = getattr(optimizer, name)
        if value != OptimizerConfig.model_fields[name].default:
            yield ConfigProblem(
                path=f"optimizer.{name}",
                rule=f"must be left out for optimizer.name {optimizer.name}, which does not use it",
                value=str(value),
                cure="leave it out, or set optimizer.name to muon",
            )


def _muon_shares_state(config: RunConfig) -> Iterator[ConfigProblem]:
    parallel = config.parallel
    num_copies = parallel.data * parallel.context
    if config.optimizer.name == "muon" and num_copies > 1 and not parallel.use_distributed_optimizer:
        yield ConfigProblem(
            path="parallel.use_distributed_optimizer",
            rule="must be true for optimizer.name muon: ranks with the same weights share its work and state "
            "by whole weights",
            value=f"false with {num_copies} of them (parallel.data x parallel.context)",
            cure="leave it out",
        )


def _warmup_start(config: RunConfig) -> Iterator[ConfigProblem]:
    optimizer = config.optimizer
    start, peak = optimizer.lr_warmup_init, optimizer.lr * min(1.0, optimizer.new_parameters_lr_mult or 1.0)
    peak = min(peak, optimizer.muon_lr or peak)
    if start > peak:
        yield ConfigProblem(
            path="optimizer.lr_warmup_init",
            rule=f"must be at most the learning rate at the end of the warm-up ({peak:g})",
            value=str(start),
            cure=f"try {peak / 10:g}",
        )
    elif start > 0 and optimizer.lr_warmup_iters == 0:
        yield ConfigProblem(
            path="optimizer.lr_warmup_init",
            rule="requires optimizer.lr_warmup_iters, without which there is no warm-up",
            value=str(start),
            cure="add optimizer.lr_warmup_iters, or remove this",
        )


def _new_parameters(config: RunConfig) -> Iterator[ConfigProblem]:
    multiplier = config.optimizer.new_parameters_lr_mult
    if multiplier is not None and not config.ponder.method.halts:
        yield ConfigProblem(
            path="optimizer.new_parameters_lr_mult",
            rule="requires a method with a router or gates",
            value=f"{multiplier} for {config.ponder.method}",
            cure=f"remove it, or use ponder.method: {_halting_methods()}",
        )


def _halting_methods() -> str:
    return " or ".join(method for method in Method if method.halts)


def _warmup_stable_decay(config: RunConfig) -> Iterator[ConfigProblem]:
    optimizer = config.optimizer
    if optimizer.lr_decay_style != "wsd":
        return
    decay_end = optimizer.lr_decay_iters or config.training.train_iters
    room = decay_end - optimizer.lr_warmup_iters
    if optimizer.wsd_decay_iters is None or optimizer.wsd_decay_iters > room:
        yield ConfigProblem(
            path="optimizer.wsd_decay_iters",
            rule=f"must be given for lr_decay_style wsd and fit after the warm-up (at most {room})",
            value="not given" if optimizer.wsd_decay_iters is None else str(optimizer.wsd_decay_iters),
            cure=f"try {max(1, room // 5)}",
        )


def _thresholds_need_halting(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.evaluation.sweep_tau and not config.ponder.method.halts:
        yield ConfigProblem(
            path="evaluation.sweep_tau",
            rule=f"must not be given for ponder.method {config.ponder.method}, whose tokens do not halt",
            value=as_written(config.evaluation.sweep_tau),
            cure=f"remove it; it is for {_halting_methods()}",
        )


def _steps_may_change(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.evaluation.sweep_steps and config.ponder.multiply_embedding:
        yield ConfigProblem(
            path="evaluation.sweep_steps",
            rule="must be false if ponder.multiply_embedding is true: the input of such a model depends on K",
            value="true",
            cure="remove it",
        )


def _attention_kernel(config: RunConfig) -> Iterator[ConfigProblem]:
    training = config.training
    if training.attention != "cudnn":
        return
    reasons = {
        "parallel.device cpu, where there is no cuDNN": config.parallel.device == "cpu",
        "training.precision fp32, which cuDNN's attention cannot compute": training.precision == "fp32",
        "training.deterministic, for which FlashAttention is the one that is known": training.deterministic,
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        yield ConfigProblem(
            path="training.attention",
            rule=f"must be auto or flash with {', and with '.join(found)}",
            value="cudnn",
            cure="remove it",
        )


TRAINING_RULES = (
    _learning_rate,
    _muon,
    _muon_shares_state,
    _warmup,
    _warmup_start,
    _new_parameters,
    _warmup_stable_decay,
    _thresholds_need_halting,
    _steps_may_change,
    _attention_kernel,
)
