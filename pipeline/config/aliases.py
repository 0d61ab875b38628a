"""Megatron's names for settings, accepted in overrides: `train-iters=100` is `training.train_iters=100`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _unchanged(value: Any) -> Any:
    return value


def _precision(value: Any) -> Any:
    """Turn Megatron's switch `bf16` into the name of a precision; leave the rest to the check of types."""
    return {True: "bf16", False: "fp32"}[value] if isinstance(value, bool) else value


def _minutes_to_seconds(value: Any) -> Any:
    return value * 60 if isinstance(value, int) and not isinstance(value, bool) else value


def _lower_case(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """Where a Megatron setting lives here, and how its value is written here."""

    path: str
    convert: Callable[[Any], Any] = _unchanged


_SAME_NAME = {
    "model": (
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "vocab_size",
        "make_vocab_size_divisible_by",
        "max_position_embeddings",
        "rotary_percent",
        "rotary_base",
        "norm_epsilon",
        "untie_embeddings_and_output_weights",
    ),
    "ponder": (
        "num_latent_thoughts",
        "num_jacobi_iterations",
        "random_jacobi_iterations",
        "scale_embeds",
        "interpolation",
        "interpolation_use_topk",
        "interpolation_topk",
    ),
    "parallel": ("sequence_parallel", "use_distributed_optimizer", "overlap_grad_reduce"),
    "training": ("seq_length", "micro_batch_size", "global_batch_size", "train_iters"),
    "optimizer": (
        "lr",
        "min_lr",
        "lr_warmup_iters",
        "lr_decay_iters",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_eps",
        "clip_grad",
    ),
}

_OTHER_NAME = {
    "bf16": Alias(path="training.precision", convert=_precision),
    "data_parallel_size": Alias(path="parallel.data"),
    "data_path": Alias(path="data.path"),
    "distributed_timeout_minutes": Alias(path="parallel.timeout_seconds", convert=_minutes_to_seconds),
    "eval_interval": Alias(path="evaluation.interval"),
    "eval_iters": Alias(path="evaluation.iters"),
    "init_method_std": Alias(path="model.init_std"),
    "log_interval": Alias(path="metrics.interval"),
    "lr_decay_style": Alias(path="optimizer.lr_decay_style", convert=_lower_case),
    "lr_wsd_decay_iters": Alias(path="optimizer.wsd_decay_iters"),
    "pipeline_model_parallel_size": Alias(path="parallel.pipeline"),
    "ponder_method": Alias(path="ponder.method"),
    "recompute_granularity": Alias(path="parallel.recompute"),
    "reset_attention_mask": Alias(path="data.reset_attention"),
    "reset_position_ids": Alias(path="data.reset_positions"),
    "save": Alias(path="checkpoint.directory"),
    "save_interval": Alias(path="checkpoint.interval"),
    "tensor_model_parallel_size": Alias(path="parallel.tensor"),
}

ALIASES: dict[str, Alias] = {
    name: Alias(path=f"{section}.{name}") for section, names in _SAME_NAME.items() for name in names
} | _OTHER_NAME


def find_alias(name: str) -> Alias | None:
    """Return the alias for a Megatron spelling: `train-iters`, `train_iters` or `--train-iters`."""
    return ALIASES.get(name.removeprefix("--").replace("-", "_"))
