"""Settings of a model in a Hugging Face ``config.json``, read key by key.

Nothing is guessed: a key that is not known here is an error, and so is a value that the model of this program
does not have. What an absent key stands for is what the configuration classes of transformers document.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.ponder.config import Method
from pipeline.config.errors import as_written
from pipeline.conversion.hf_keys import CLASSES, TOKEN_IDS, ConfigKeys
from pipeline.conversion.hf_method import method_settings
from pipeline.conversion.hf_ponder_config import MODEL_TYPE, parse_ponder_config
from pipeline.conversion.hf_rotary import rotary_settings
from pipeline.shared.errors import ConversionError

CONFIG_JSON = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """What a config.json says.

    Attributes:
        values: as read, less what was to be ignored.
        model: settings of the group `model`.
        ponder: settings of the group `ponder`, among them the method.
        token_ids: bos_token_id and the like, as far as given.
    """

    values: Mapping[str, Any]
    model: Mapping[str, Any]
    ponder: Mapping[str, Any]
    token_ids: Mapping[str, Any]

    @property
    def method(self) -> Method:
        """Whose weights these are."""
        return Method(self.ponder["method"])


def read_source(folder: Path, *, ignored: Sequence[str] = ()) -> SourceModel:
    """Read the config.json of a folder.

    Args:
        folder: of the model.
        ignored: keys that the user says mean nothing here.
    Raises:
        ConversionError: with everything that is unknown or unsupported.
    """
    values = read_config_json(folder / CONFIG_JSON)
    absent = sorted(set(ignored) - values.keys())
    if absent:
        raise ConversionError(
            f"--ignore must name keys of {folder / CONFIG_JSON}, but it has no {', '.join(absent)}; leave "
            "it out"
        )
    values = {key: value for key, value in values.items() if key not in ignored}
    return parse_source(values, origin=str(folder / CONFIG_JSON))


def parse_source(values: Mapping[str, Any], *, origin: str) -> SourceModel:
    """Understand a configuration.

    Args:
        values: of a config.json.
        origin: named in errors.
    Raises:
        ConversionError: with everything that is unknown or unsupported.
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
    keys.refuse_others()
    if keys.problems:
        raise ConversionError(
            "\n".join(
                [f"{len(keys.problems)} problem(s) in {origin}:", *(f"  - {text}" for text in keys.problems)]
            )
        )
    return SourceModel(values=values, model=model, ponder=ponder, token_ids=token_ids)


def _backbone(keys: ConfigKeys, architecture: str, token_ids: Mapping[str, Any]) -> dict[str, Any]:
    model = _sizes(keys) | rotary_settings(keys, architecture)
    model |= _neox(keys, model) if architecture == "gpt_neox" else _llama(keys, model, token_ids)
    return model | {
        "architecture": architecture,
        "untie_embeddings_and_output_weights": not keys.switch("tie_word_embeddings"),
    }


def _sizes(keys: ConfigKeys) -> dict[str, Any]:
    for key in ("attention_dropout", "hidden_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"):
        keys.expect(key, 0.0, why="there is no dropout here")
    keys.expect("is_encoder_decoder", False, why="there are no encoders here")
    return {
        "vocab_size": keys.count("vocab_size"),
        "hidden_size": keys.count("hidden_size"),
        "ffn_hidden_size": keys.count("intermediate_size"),
        "num_layers": keys.count("num_hidden_layers"),
        "num_attention_heads": keys.count("num_attention_heads"),
        "max_position_embeddings": keys.count("max_position_embeddings", 2048),
    }


def _neox(keys: ConfigKeys, model: Mapping[str, Any]) -> dict[str, Any]:
    keys.expect("hidden_act", "gelu", why="only the exact GELU is there for gpt_neox")
    keys.expect("use_parallel_residual", True, why="attention and MLP work side by side here")
    keys.expect("attention_bias", True, why="every linear layer of gpt_neox has a bias here")
    heads = model["num_attention_heads"]
    if model["hidden_size"] % heads:
        keys.problems.append(
            f"hidden_size: must be a multiple of num_attention_heads ({heads}), but is {model['hidden_size']}"
        )
    return {"norm_epsilon": keys.positive("layer_norm_eps", 1e-5)}


def _llama(keys: ConfigKeys, model: Mapping[str, Any], token_ids: Mapping[str, Any]) -> dict[str, Any]:
    keys.expect("hidden_act", "silu", why="only SwiGLU is there for llama")
    for key in ("attention_bias", "mlp_bias"):
        keys.expect(key, False, why="linear layers of llama have no biases here")
    keys.expect("pretraining_tp", 1, why="sums in slices are not made here")
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


def read_config_json(path: Path) -> dict[str, Any]:
    """Return the settings in a config.json.

    Raises:
        ConversionError: it cannot be read.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{path} must be the JSON configuration of a model, but cannot be read ({error}); give the "
            "folder of "
            "a whole model"
        ) from error
    if not isinstance(values, dict):
        raise ConversionError(f"{path} must hold settings by name, but holds {type(values).__name__}")
    return values
