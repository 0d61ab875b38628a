"""The ``config.json`` of an exported backbone."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.schema import ModelConfig
from pipeline.conversion.hf_keys import CLASSES, TOKEN_IDS


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
