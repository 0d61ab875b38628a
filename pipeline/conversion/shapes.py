"""Shapes of a model's tensors under their Hugging Face names."""

from collections.abc import Mapping

from megatron_ext.model.config import Architecture, PonderTransformerConfig

Shape = tuple[int, ...]


def expected_shape(name: str, config: PonderTransformerConfig) -> Shape:
    """Return the shape of a tensor.

    Args:
        name: one of the sources of :func:`megatron_ext.weights.entries`.
        config: the model; its vocabulary is that of the source.
    """
    if name.startswith("ponder."):
        return _decider_shape(name, config)
    shapes = _neox_shapes(config) if config.architecture is Architecture.GPT_NEOX else _llama_shapes(config)
    # "gpt_neox.layers.3.mlp.dense_h_to_4h.weight" -> "dense_h_to_4h.weight"
    module, _, kind = name.rpartition(".")
    shape = shapes[module.rpartition(".")[2]]
    return shape[:1] if kind == "bias" else shape


def _neox_shapes(config: PonderTransformerConfig) -> Mapping[str, Shape]:
    hidden, inner, vocabulary = config.hidden_size, config.ffn_hidden_size, config.vocab_size
    norms = ("input_layernorm", "post_attention_layernorm", "final_layer_norm")
    return {
        **dict.fromkeys(norms, (hidden,)),
        "embed_in": (config.embedding_rows, hidden),
        "embed_out": (vocabulary, hidden),
        "query_key_value": (3 * hidden, hidden),
        "dense": (hidden, hidden),
        "dense_h_to_4h": (inner, hidden),
        "dense_4h_to_h": (hidden, inner),
    }


def _llama_shapes(config: PonderTransformerConfig) -> Mapping[str, Shape]:
    hidden, inner, vocabulary = config.hidden_size, config.ffn_hidden_size, config.vocab_size
    queries = config.num_attention_heads * config.kv_channels
    keys = config.num_query_groups * config.kv_channels
    return {
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm", "norm"), (hidden,)),
        "embed_tokens": (config.embedding_rows, hidden),
        "lm_head": (vocabulary, hidden),
        **dict.fromkeys(("k_proj", "v_proj"), (keys, hidden)),
        **dict.fromkeys(("gate_proj", "up_proj"), (inner, hidden)),
        "q_proj": (queries, hidden),
        "o_proj": (hidden, queries),
        "down_proj": (hidden, inner),
    }


def _decider_shape(name: str, config: PonderTransformerConfig) -> Shape:
    decider, num_thoughts = config.ponder.decider, config.ponder.num_latent_thoughts
    assert decider is not None, f"{config.ponder.method} has no {name}"
    # "ponder.gates.1.0.weight" -> "0.weight"
    prefix = next(one for one in decider.prefixes(num_thoughts) if name.startswith(f"{one}."))
    return decider.shapes(config.hidden_size, num_thoughts)[name.removeprefix(f"{prefix}.")]
