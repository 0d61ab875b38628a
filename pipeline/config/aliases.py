"""Other names for settings: earlier spellings, Megatron's names, and those of the methods' published code.

- A renamed setting keeps its earlier spelling (`RENAMED`) in files and in overrides, with a notice.
- A name of another program whose value means the same here is accepted in overrides: `train-iters=100` is
  `training.train_iters=100`.
- For the other names, the error suggests the setting that replaces them.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.errors import ConfigProblem, as_written

logger = logging.getLogger(__name__)

# Earlier path -> present path, each `setting` or `group.setting`; a group or a list moves as a whole.
RENAMED: dict[str, str] = {"stages": "workflow"}
_ABSENT = object()


def rename_settings(
    settings: dict[str, Any], *, source: str, renamed: Mapping[str, str] | None = None
) -> list[ConfigProblem]:
    """Move the values of renamed settings to their present paths, with a notice for each.

    Args:
        settings: nested settings of one file; changed in place.
        source: the file, for the notice.
        renamed: earlier path to present path; default: `RENAMED`.

    Returns:
        a problem for every setting that is given under both names.
    """
    problems = []
    for old, new in (RENAMED if renamed is None else renamed).items():
        value = _take(settings, old)
        if value is _ABSENT:
            continue
        group, leaf = _group_of(settings, new)
        if leaf in group:
            problems.append(given_under_both_names(old, new, as_written(value)))
            continue
        # A configuration that was stored with all its defaults needs no notice.
        if value not in (None, [], {}):
            notify_renamed(old, new, source=source)
        group[leaf] = value
    return problems


def present_name(name: str, renamed: Mapping[str, str] | None = None) -> str:
    """Return the present path of a setting for an earlier one, and every other name unchanged."""
    for old, new in (RENAMED if renamed is None else renamed).items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def notify_renamed(old: str, new: str, *, source: str) -> None:
    """Log that an earlier name is used, and the one to use instead."""
    logger.warning("%s: the setting %s is now called %s; the old name still works", source, old, new)


def given_under_both_names(old: str, new: str, value: str) -> ConfigProblem:
    """Make the problem for a setting that is given under its earlier and its present name."""
    return ConfigProblem(
        path=old,
        rule=f"must not be given together with {new}, its present name",
        value=value,
        cure=f"keep {new} only",
    )


def _take(settings: dict[str, Any], path: str) -> Any:
    """Remove a value, and its group with its last one: the group may no longer exist in the schema."""
    group_name, _, leaf = path.rpartition(".")
    group = settings.get(group_name) if group_name else settings
    if not isinstance(group, dict):
        return _ABSENT
    value = group.pop(leaf, _ABSENT)
    if value is not _ABSENT and group_name and not group:
        del settings[group_name]
    return value


def _group_of(settings: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """Return the group that holds a path, created where it is absent, and the last part of the path."""
    group_name, _, leaf = path.rpartition(".")
    if not group_name:
        return settings, leaf
    if settings.get(group_name) is None:
        settings[group_name] = {}
    group = settings[group_name]
    # Not a group, so nothing can be moved into it: build_config reports it.
    return (group, leaf) if isinstance(group, dict) else ({}, leaf)


def _precision(value: Any) -> Any:
    """Turn Megatron's switch `bf16` into the name of a precision; the schema reports other types."""
    return {True: "bf16", False: "fp32"}[value] if isinstance(value, bool) else value


def _minutes_to_seconds(value: Any) -> Any:
    return value * 60 if isinstance(value, int) and not isinstance(value, bool) else value


def _lower_case(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _method(value: Any) -> Any:
    """Turn the published `patch_method` into the name of a method; PonderLM-2's code calls itself `ours`."""
    return "ponderlm2" if value == "ours" else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """The setting that another name stands for, and how its value is written here if not the same."""

    path: str
    convert: Callable[[Any], Any] | None = None


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
        "muon_momentum",
        "muon_num_ns_steps",
        "clip_grad",
    ),
}

_OTHER_NAME = {
    "bf16": Alias(path="training.precision", convert=_precision),
    "context_parallel_size": Alias(path="parallel.context"),
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
    # Misspelled in PonderLM's code.
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


# Their values mean something else here, or nothing: these names are only suggested, never applied.
_SUCCESSORS = {
    "fp16": "training.precision",
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
    """Return the alias for a name, spelled `train-iters`, `train_iters` or `--train-iters`."""
    return ALIASES.get(_normal(name))


def find_successor(name: str) -> str | None:
    """Return the path of the setting that replaces one of another program."""
    return SUCCESSORS.get(_normal(name))


def setting_named(name: str) -> str | None:
    """Return the path of the setting that a name of another program, or of this one, stands for."""
    alias = find_alias(name)
    if alias is not None:
        return alias.path
    return name if "." in name else find_successor(name)


def _normal(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")
