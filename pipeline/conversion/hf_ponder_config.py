"""The ``config.json`` of an exported pondering model, written and read.

Its keys are the settings of :mod:`pipeline.conversion.hf_model`: those of `ponder`, and those of `model` by
other names.
"""

from collections.abc import Mapping
from typing import Any

from megatron_ext.ponder.config import Method
from pipeline.config.errors import as_written
from pipeline.config.rules_ponder import default_of
from pipeline.config.schema import RunConfig
from pipeline.conversion.hf_keys import CLASSES, TOKEN_IDS, ConfigKeys

MODEL_TYPE = "megaponder"
MODEL_CLASS = "MegaPonderForCausalLM"
AUTO_MAP = {
    "AutoConfig": "configuration_megaponder.MegaPonderConfig",
    "AutoModelForCausalLM": f"modeling_megaponder.{MODEL_CLASS}",
}
# Names of the backbone's settings there, and in `model`.
_COUNTS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "max_position_embeddings": "max_position_embeddings",
    "rotary_base": "rotary_base",
}
_NUMBERS = {"rotary_percent": "rotary_percent", "norm_eps": "norm_epsilon"}
# Settings that change what a trained model computes; the rest of `ponder` is about training.
_PONDER = (
    "num_latent_thoughts",
    "num_jacobi_iterations",
    "scale_embeds",
    "mixture",
    "mixture_top_k",
    "softmax_temperature",
    "residual",
    "multiply_embedding",
    "pause_token_id",
    "step_input_scale",
    "pruning_threshold",
    "router",
    "mask_in_training",
    "attention_scale_extra",
    "pre_pass",
    "router_damping",
    "undamped_sweeps",
    "readout_from",
    "reading",
)
# Those that models have not, which were exported before there was a choice: they have the default.
_ADDED = _PONDER[_PONDER.index("router") :]
# How transformers reads prompts; independent of the weights.
_READING = ("prefill_tolerance", "prefill_sweeps")


def settings_of_method(method: Method) -> list[str]:
    """Return the settings of `ponder` that decide what a trained model of a method computes."""
    return [name for name in _PONDER if name in method.facts.settings]


def render_ponder_config(
    config: RunConfig, *, vocab_size: int, dtype: str, token_ids: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the config.json of a pondering model.

    Args:
        config: its run.
        vocab_size: rows of the head.
        dtype: name of the weights' type, such as ``bfloat16``.
        token_ids: bos_token_id and the like; absent ones are written as null.
    """
    model, ponder = config.model, config.ponder
    settings: dict[str, Any] = {
        "architectures": [MODEL_CLASS],
        "auto_map": AUTO_MAP,
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "backbone": model.architecture,
        **{key: getattr(model, name) for key, name in (_COUNTS | _NUMBERS).items()},
        "vocab_size": vocab_size,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        **{key: token_ids.get(key) for key in TOKEN_IDS},
        "method": ponder.method.value,
        **{name: getattr(ponder, name) for name in settings_of_method(ponder.method)},
    }
    if model.architecture == "llama":
        # Llama's embedding of this token has no gradient.
        settings["pad_token_id"] = model.padding_token_id
    if ponder.method.facts.has_pause_tokens and ponder.pause_token_id is None:
        # The row that is reserved behind the vocabulary.
        settings["pause_token_id"] = vocab_size
    return settings


def parse_ponder_config(
    keys: ConfigKeys, token_ids: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of `model` and `ponder`; problems are noted in `keys`.

    Args:
        keys: of a config.json with this model type.
        token_ids: already read from it.
    """
    keys.expect("architectures", [MODEL_CLASS], why="another class has other weights")
    keys.expect("auto_map", AUTO_MAP, why="other code may compute anything")
    architecture = _one_of(keys, "backbone", CLASSES)
    model: dict[str, Any] = {
        "architecture": architecture,
        **{name: keys.count(key) for key, name in _COUNTS.items()},
        **{name: keys.positive(key) for key, name in _NUMBERS.items()},
        "untie_embeddings_and_output_weights": not keys.switch("tie_word_embeddings"),
    }
    if architecture == "llama":
        model["padding_token_id"] = token_ids.get("pad_token_id")
    else:
        _check_heads(keys, model)
    for name in _READING:
        keys.take(name)
    method = Method(_one_of(keys, "method", [method.value for method in Method]))
    return model, {"method": method.value, **_ponder_settings(keys, method, model["vocab_size"])}


def _check_heads(keys: ConfigKeys, model: Mapping[str, Any]) -> None:
    """Note a problem where heads of gpt_neox do not share out the hidden size, each with a key of its own."""
    heads, size = model["num_attention_heads"], model["kv_channels"]
    if heads * size != model["hidden_size"] or model["num_query_groups"] != heads:
        keys.problems.append(
            f"head_dim: for gpt_neox, num_attention_heads ({heads}) times head_dim must be hidden_size "
            f"({model['hidden_size']}) and num_key_value_heads as many, but head_dim is {size} and "
            f"num_key_value_heads {model['num_query_groups']}"
        )


def _ponder_settings(keys: ConfigKeys, method: Method, vocab_size: int) -> dict[str, Any]:
    given = {name: keys.take(name) for name in _PONDER}
    for name in _ADDED:
        given[name] = default_of(name, method) if given[name] is None else given[name]
    if given["pause_token_id"] == vocab_size:
        given["pause_token_id"] = None
    owned = {name: given[name] for name in settings_of_method(method)}
    keys.problems += [
        f"{name}: must be present for the method {method}, but is absent"
        for name, value in owned.items()
        if value is None and name != "pause_token_id"
    ]
    # transformers writes every setting when it saves a model again.
    keys.problems += [
        f"{name}: must be absent for the method {method}, but is {as_written(given[name])}"
        for name in given.keys() - owned.keys()
        if given[name] is not None and name in _MEANINGFUL and given[name] != default_of(name, method)
    ]
    return owned


# Settings that have the same default for every method that does not use them.
_MEANINGFUL = (
    "softmax_temperature",
    "residual",
    "multiply_embedding",
    "pause_token_id",
    "step_input_scale",
    *_ADDED,
)


def _one_of(keys: ConfigKeys, key: str, known: Any) -> str:
    value = keys.take(key)
    if value not in known:
        keys.problems.append(f"{key}: must be one of {', '.join(known)}, but is {as_written(value)}")
        return str(next(iter(known)))
    return str(value)
