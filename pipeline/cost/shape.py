"""The sizes of a model and the parameters that follow from them."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16"]

# Channels that the weight of a key takes, and the multiple that fused attention wants head sizes to be.
WEIGHT_COLUMNS = {"fp32": 1, "bf16": 2}
HEAD_SIZE_STEP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes that decide parameters and operations.

    ``vocab_size`` is the tokenizer's, ``padded_vocab_size`` what embedding and head really hold; ``gpt_neox``
    has biases, LayerNorm and a plain MLP, ``llama`` no biases, RMSNorm and a gated MLP.
    """

    architecture: Literal["gpt_neox", "llama"]
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    padded_vocab_size: int
    seq_length: int
    tied_embeddings: bool = False

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a gate beside its first product."""
        return self.architecture == "llama"

    @property
    def has_biases(self) -> bool:
        """Whether products and norms have biases."""
        return self.architecture == "gpt_neox"

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.kv_channels

    @property
    def key_value_size(self) -> int:
        """Width of all key heads and all value heads together."""
        return 2 * self.num_query_groups * self.kv_channels

    def weighted_head_size(self, precision: Precision) -> int:
        """Return the channels of a head whose keys carry log w, padding included (definitions 2.6)."""
        channels = self.kv_channels + WEIGHT_COLUMNS[precision]
        return channels + -channels % HEAD_SIZE_STEP

    @property
    def heads_weights(self) -> int:
        """Elements of the matrix that gives queries, keys and values."""
        return self.hidden_size * (self.query_size + self.key_value_size)

    @property
    def mlp_weights(self) -> int:
        """Elements of the matrices of one MLP."""
        num_products = 3 if self.is_gated else 2
        return num_products * self.hidden_size * self.ffn_hidden_size

    @property
    def layer_weights(self) -> int:
        """Elements of the weight matrices of one layer."""
        return self.heads_weights + self.query_size * self.hidden_size + self.mlp_weights

    @property
    def has_parallel_residual(self) -> bool:
        """Whether the MLP takes the layer's input, and not what attention has made of it."""
        return self.architecture == "gpt_neox"

    @property
    def vocabulary_weights(self) -> int:
        """Elements of the embedding, or of the head."""
        return self.padded_vocab_size * self.hidden_size

    @property
    def norm_parameters(self) -> int:
        return self.hidden_size * (2 if self.has_biases else 1)

    @property
    def layer_parameters(self) -> int:
        biases = self.query_size + self.key_value_size + 2 * self.hidden_size + self.ffn_hidden_size
        return self.layer_weights + 2 * self.norm_parameters + (biases if self.has_biases else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Number of unique parameters, by where they live."""

    embedding: int
    layers: int
    final_norm: int
    head: int
    decider: int

    @property
    def total(self) -> int:
        """All unique parameters."""
        return self.embedding + self.layers + self.final_norm + self.head + self.decider

    @property
    def non_embedding(self) -> int:
        """All but embedding and head: the count by which models of the field are named."""
        return self.total - self.embedding - self.head
