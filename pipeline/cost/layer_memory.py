"""What one transformer layer leaves behind for its backward, and what that backward needs beside it.

The tensors are those that autograd keeps of :mod:`megatron_ext.model.layers`, in the order in which they are
made. `python -m tests.bench memory` compares the sums with the tensors that are really alive.
"""

from pipeline.cost.rank_sizes import FLOAT32, RankSizes


def layer_kept(sizes: RankSizes, rows: float, index: int) -> float:
    """Bytes that a layer keeps for backward, its input included.

    Args:
        sizes: the run.
        rows: R of the pass, all of them.
        index: of the pass.
    """
    return rows * (_norms(sizes) + _attention(sizes, index) + _mlp(sizes))


def layer_working(sizes: RankSizes, rows: float, index: int) -> float:
    """Bytes that backward through a layer needs beside what the layers have kept.

    The gradient of the hidden state, those inside the MLP, which comes first, and the gradient of one weight.
    """
    shape, value = sizes.shape, sizes.value_bytes
    inner = shape.ffn_hidden_size / sizes.tensor
    hidden = shape.hidden_size / _token_split(sizes)
    weight = shape.hidden_size * inner * value
    working = rows * value * (2 * hidden + (2 if shape.is_gated else 1) * inner) + weight
    if sizes.recompute == "selective":
        attention = rows * value * (hidden + _attended(sizes, index) * 7)
        working = max(working, attention - rows * value * (2 if not shape.is_gated else 5) * inner)
    return working


def _token_split(sizes: RankSizes) -> int:
    return sizes.tensor if sizes.shards_tokens else 1


def _norms(sizes: RankSizes) -> float:
    """Per row: the input and the output of both norms; a parallel residual has one input for both."""
    shape, value = sizes.shape, sizes.value_bytes
    num_inputs = 1 if shape.architecture == "gpt_neox" else 2
    outputs = 2 * value * shape.hidden_size
    if shape.has_biases or sizes.has_fused_norms:
        inputs: float = num_inputs * value * shape.hidden_size
    else:
        # Several operations: the input and the normed input, both in float32.
        inputs = num_inputs * 2 * FLOAT32 * shape.hidden_size
    return (outputs + inputs) / _token_split(sizes)


def _attention(sizes: RankSizes, index: int) -> float:
    """Per row: what the product of queries and keys takes, the attended values, and the rotary factors."""
    shape, value = sizes.shape, sizes.value_bytes
    query, key = shape.query_size / sizes.tensor, shape.key_value_size / 2 / sizes.tensor
    heads = shape.num_attention_heads / sizes.tensor
    # cos and sin, once for queries and once for keys.
    rotary = 4 * sizes.rotary_size * value
    # The values are a view of the fused product, and keep all of it.
    taken = query + key + (query + 2 * key)
    if sizes.has_kept_keys(index):
        taken = query + 2 * key
    is_weighted = sizes.has_weighted_keys(index)
    if sizes.recompute == "selective":
        return rotary + value * (taken + query)
    if is_weighted:
        taken = (query + 2 * key) * sizes.weighted_head_size / shape.kv_channels
    # Without the columns of log w, and with documents put together, it is copied.
    is_copied = is_weighted or sizes.separates_documents
    attended = _attended(sizes, index) + (query if is_copied else 0)
    return rotary + value * (taken + attended) + FLOAT32 * heads


def _attended(sizes: RankSizes, index: int) -> float:
    """Channels per row of the fused attention's output."""
    shape = sizes.shape
    size = sizes.weighted_head_size if sizes.has_weighted_keys(index) else shape.kv_channels
    return shape.num_attention_heads * size / sizes.tensor


def _mlp(sizes: RankSizes) -> float:
    """Per row: before and after the activation; of a gated MLP both halves, their parts and their product."""
    num_kept = 5 if sizes.shape.is_gated else 2
    return num_kept * sizes.value_bytes * sizes.shape.ffn_hidden_size / sizes.tensor
