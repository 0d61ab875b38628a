"""Settings of a model in a Hugging Face ``config.json``, read and written key by key.

Nothing is guessed: an unknown key is an error, and so is a value that this program's model does not support.
Absent keys have the defaults that the configuration classes of transformers document.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.ponder.config import Method
from pipeline.config.errors import as_written
from pipeline.config.schema import ModelConfig
from pipeline.conversion.hf_keys import CLASSES, TOKEN_IDS, ConfigKeys
from pipeline.conversion.hf_method import method_settings
from pipeline.conversion.hf_ponder_config import MODEL_TYPE, parse_ponder_config
from pipeline.shared.errors import ConversionError
from pipeline.shared.foreign_files import read_json_object

CONFIG_JSON = "config.json"
_DEFAULT_ROTARY_BASE = 10000
_MOST_CONFIG_BYTES = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """The content of a config.json.

    Attributes:
        values: as read, without the ignored keys.
        model: settings of the group `model`.
        ponder: settings of the group `ponder`, including the method.
        token_ids: bos_token_id and the like, as far as given.
    """

    values: Mapping[str, Any]
    model: Mapping[str, Any]
    ponder: Mapping[str, Any]
    token_ids: Mapping[str, Any]

    @property
    def method(self) -> Method:
        """The pondering method of the weights."""
        return Method(self.ponder["method"])


def read_source(folder: Path, *, ignored: Sequence[str] = ()) -> SourceModel:
    """Read the config.json of a folder.

    Args:
        folder: of the model.
        ignored: keys to ignore.
    Raises:
        ConversionError: lists everything that is unknown or unsupported.
    """
    values = read_config_json(folder / CONFIG_JSON)
    absent = sorted(set(ignored) - values.keys())
    if absent:
        raise ConversionError(
            f"--ignore must name keys of {folder / CONFIG_JSON}, but it has no {', '.join(absent)}; "
            "remove them"
        )
    values = {key: value for key, value in values.items() if key not in ignored}
    return parse_source(values, origin=str(folder / CONFIG_JSON))


def parse_source(values: Mapping[str, Any], *, origin: str) -> SourceModel:
    """Parse a configuration.

    Args:
        values: of a config.json.
        origin: the name of the source in errors.
    Raises:
        ConversionError: lists everything that is unknown or unsupported.
    """
    known = (*CLASSES, MODEL_TYPE)
    kind = values.get("model_type")
    if kind not in known:
        raise ConversionError(
            f"{origin}: model_type must be one of {', '.join(known)}, but is {as_written(kind)}; only these "
            "can be converted"
        )
    keys = ConfigKeys(values)
    keys.take("model_type")
    token_ids = {key: keys.take(key) for key in TOKEN_IDS if key in values}
    if kind == MODEL_TYPE:
        model, ponder = parse_ponder_config(keys, token_ids)
    else:
        model, ponder = _backbone(keys, kind, token_ids), method_settings(keys, kind)
    keys.report_others()
    if keys.problems:
        raise ConversionError(
            "\n".join(
                [f"{len(keys.problems)} problem(s) in {origin}:", *(f"  - {text}" for text in keys.problems)]
            )
        )
    return SourceModel(values=values, model=model, ponder=ponder, token_ids=token_ids)


def _backbone(keys: ConfigKeys, architecture: str, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    model = _sizes(keys) | _rotary_settings(keys, architecture)
    model |= _neox(keys, model) if architecture == "gpt_neox" else _llama(keys, model, token_ids)
    return model | {
        "architecture": architecture,
        "untie_embeddings_and_output_weights": not keys.switch("tie_word_embeddings"),
    }


def _sizes(keys: ConfigKeys) -> dict[str, Any]:
    for key in ("attention_dropout", "hidden_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"):
        keys.expect(key, 0.0, why="dropout is not supported")
    keys.expect("is_encoder_decoder", False, why="encoders are not supported")
    return {
        "vocab_size": keys.count("vocab_size"),
        "hidden_size": keys.count("hidden_size"),
        "ffn_hidden_size": keys.count("intermediate_size"),
        "num_layers": keys.count("num_hidden_layers"),
        "num_attention_heads": keys.count("num_attention_heads"),
        "max_position_embeddings": keys.count("max_position_embeddings", 2048),
    }


def _neox(keys: ConfigKeys, model: Mapping[str, Any]) -> dict[str, Any]:
    keys.expect("hidden_act", "gelu", why="only the exact GELU is supported for gpt_neox")
    keys.expect("use_parallel_residual", True, why="only the parallel residual is supported")
    keys.expect("attention_bias", True, why="linear layers of gpt_neox always have a bias")
    heads = model["num_attention_heads"]
    if model["hidden_size"] % heads:
        keys.problems.append(
            f"hidden_size: must be a multiple of num_attention_heads ({heads}), but is {model['hidden_size']}"
        )
    return {"norm_epsilon": keys.positive("layer_norm_eps", 1e-5)}


def _llama(keys: ConfigKeys, model: Mapping[str, Any], token_ids: Mapping[str, Any]) -> dict[str, Any]:
    keys.expect("hidden_act", "silu", why="only SwiGLU is supported for llama")
    for key in ("attention_bias", "mlp_bias"):
        keys.expect(key, False, why="linear layers of llama never have a bias")
    keys.expect("pretraining_tp", 1, why="sliced sums are not supported")
    heads = model["num_attention_heads"]
    padding = token_ids.get("pad_token_id")
    # Older transformers wrote -1 for "none".
    has_padding = isinstance(padding, int) and padding >= 0
    head_size = keys.take("head_dim")
    return {
        "norm_epsilon": keys.positive("rms_norm_eps", 1e-6),
        "num_query_groups": keys.count("num_key_value_heads", heads),
        "kv_channels": model["hidden_size"] // heads if head_size is None else head_size,
        "padding_token_id": padding if has_padding else None,
    }


def _rotary_settings(keys: ConfigKeys, architecture: str) -> dict[str, Any]:
    """Return base and share of the rotation, under any of their names; scaling is rejected."""
    is_neox = architecture == "gpt_neox"
    new = _unscaled(keys, "rope_parameters")
    scaled = _unscaled(keys, "rope_scaling")
    names = ("rope_theta", "rotary_emb_base") if is_neox else ("rope_theta",)
    bases = {name: keys.take(name) for name in names} | {
        "rope_parameters.rope_theta": new.get("rope_theta"),
        "rope_scaling.rope_theta": scaled.get("rope_theta"),
    }
    names = ("rotary_pct", "partial_rotary_factor") if is_neox else ("partial_rotary_factor",)
    shares = {name: keys.take(name) for name in names} | {
        "rope_parameters.partial_rotary_factor": new.get("partial_rotary_factor")
    }
    base = _agreed(keys, bases, _DEFAULT_ROTARY_BASE)
    if not isinstance(base, int | float) or base != int(base) or base < 1:
        keys.problems.append(f"rope_theta: must be a whole number of at least 1, but is {as_written(base)}")
        base = _DEFAULT_ROTARY_BASE
    share = _agreed(keys, shares, 0.25 if is_neox else 1.0)
    if not is_neox and share != 1:
        keys.problems.append(f"partial_rotary_factor: must be 1 for llama, but is {as_written(share)}")
    return {"rotary_base": int(base), "rotary_percent": float(share)}


def _unscaled(keys: ConfigKeys, key: str) -> Mapping[str, Any]:
    """Return a description of the rotation, which must not scale positions."""
    given = keys.take(key)
    if given is None:
        return {}
    if not isinstance(given, dict):
        keys.problems.append(f"{key}: must be null or a group, but is {as_written(given)}")
        return {}
    kind = given.get("rope_type", given.get("type", "default"))
    others = sorted(given.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor"})
    if kind != "default" or others:
        keys.problems.append(
            f"{key}: must not scale rotary positions, but is {json.dumps(given)}; such a model cannot be "
            "converted"
        )
    return given


def _agreed(keys: ConfigKeys, given: Mapping[str, Any], default: float) -> Any:
    """Return the value of a setting with several names, which must agree."""
    values = {name: value for name, value in given.items() if value is not None}
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{name} {as_written(value)}" for name, value in values.items())
        keys.problems.append(
            f"{next(iter(values))}: must have one value under all its names, but has {listed}"
        )
    return next(iter(values.values()), default)


def read_config_json(path: Path) -> dict[str, Any]:
    """Return the settings in a config.json.

    Raises:
        ConversionError: it cannot be read.
    """
    try:
        return read_json_object(path, most_bytes=_MOST_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{path} must be the JSON configuration of a model, but cannot be read ({error}); give the "
            "folder of a complete model"
        ) from error


def render_hf_config(
    model: ModelConfig, *, vocab_size: int, dtype: str, token_ids: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the config.json of a vanilla model, with keys that old and new versions of transformers read.

    Args:
        model: the backbone.
        vocab_size: rows of embedding and head.
        dtype: name of the type of the weights, such as ``bfloat16``.
        token_ids: bos_token_id and the like; absent ones are written as null.
    """
    common = {
        "architectures": [CLASSES[model.architecture]],
        "model_type": model.architecture,
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "max_position_embeddings": model.max_position_embeddings,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    ids = {key: token_ids.get(key) for key in TOKEN_IDS}
    if model.architecture == "gpt_neox":
        return (
            common
            | ids
            | {
                "hidden_act": "gelu",
                "layer_norm_eps": model.norm_epsilon,
                "rotary_pct": model.rotary_percent,
                "rotary_emb_base": model.rotary_base,
                "use_parallel_residual": True,
                "attention_bias": True,
            }
        )
    return (
        common
        | ids
        | {
            "hidden_act": "silu",
            "rms_norm_eps": model.norm_epsilon,
            "num_key_value_heads": model.num_query_groups,
            "head_dim": model.kv_channels,
            "rope_theta": float(model.rotary_base),
            "attention_bias": False,
            "mlp_bias": False,
            "pad_token_id": model.padding_token_id,
        }
    )
