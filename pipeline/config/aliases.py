"""Other names for settings: Megatron's and those of the methods' published code.

A name whose value means the same here is accepted in overrides: `train-iters=100` is
`training.train_iters=100`. Of the others it is said which setting does what they did.
"""

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


def _method(value: Any) -> Any:
    """Turn the published `patch_method` into the name of a method: PonderLM-2 calls itself `ours`."""
    return "ponderlm2" if value == "ours" else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """Where a setting of another name lives here, and how its value is written here."""

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
        "pause_token_id",
    ),
    "parallel": ("sequence_parallel", "use_distributed_optimizer", "overlap_grad_reduce"),
    "training": (
        "seq_length",
        "micro_batch_size",
        "global_batch_size",
        "train_iters",
        "exit_interval",
        "exit_duration_in_mins",
    ),
    "optimizer": (
        "lr",
        "min_lr",
        "lr_warmup_iters",
        "lr_warmup_init",
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
    "interpolation_topk": Alias(path="ponder.mixture_top_k"),
    "log_interval": Alias(path="metrics.interval"),
    "lr_decay_style": Alias(path="optimizer.lr_decay_style", convert=_lower_case),
    "lr_wsd_decay_iters": Alias(path="optimizer.wsd_decay_iters"),
    "lr_wsd_decay_style": Alias(path="optimizer.wsd_decay_style"),
    # Written so in PonderLM's code.
    "mutiply_pondering_steps": Alias(path="ponder.multiply_embedding"),
    "patch_method": Alias(path="ponder.method", convert=_method),
    "pipeline_model_parallel_size": Alias(path="parallel.pipeline"),
    "ponder_method": Alias(path="ponder.method"),
    "pondering_steps": Alias(path="ponder.num_latent_thoughts"),
    "recompute_granularity": Alias(path="parallel.recompute"),
    "reset_attention_mask": Alias(path="data.reset_attention"),
    "reset_position_ids": Alias(path="data.reset_positions"),
    "save": Alias(path="checkpoint.directory"),
    "save_interval": Alias(path="checkpoint.interval"),
    # The name of earlier versions.
    "stages": Alias(path="workflow"),
    "tensor_model_parallel_size": Alias(path="parallel.tensor"),
}

ALIASES: dict[str, Alias] = {
    name: Alias(path=f"{section}.{name}") for section, names in _SAME_NAME.items() for name in names
} | _OTHER_NAME


# Groups of a file that had another name in earlier versions, and what they are called now.
RENAMED_GROUPS = {"stages": "workflow"}


# What these take means something else here, or nothing: they are never applied.
_SUCCESSORS = {
    "decoder_first_pipeline_num_layers": "parallel.layers_per_stage",
    "decoder_last_pipeline_num_layers": "parallel.layers_per_stage",
    "interpolation": "ponder.mixture",
    "interpolation_use_topk": "ponder.mixture",
    "pipeline_model_parallel_layout": "parallel.layers_per_stage",
    "ponderinglm": "ponder.method",
    "recurrent_model": "ponder.method",
    "recurrent_steps": "ponder.num_latent_thoughts",
}

SUCCESSORS: dict[str, str] = {name: alias.path for name, alias in ALIASES.items()} | _SUCCESSORS


def find_alias(name: str) -> Alias | None:
    """Return the alias for another spelling: `train-iters`, `train_iters` or `--train-iters`."""
    return ALIASES.get(_normal(name))


def find_successor(name: str) -> str | None:
    """Return the path of the setting that does what a setting of this name does elsewhere."""
    return SUCCESSORS.get(_normal(name))


def _normal(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")
