"""Exact accounting of parameters and floating-point operations, from the model's shape alone.

Counted are the matrix products, two operations per multiply-add, as ``torch.utils.flop_counter`` counts them:
attention scores and values over all pairs of rows of a pass, masked or not. Not counted are norms,
activations, softmax, the lookup of embeddings, and the extra key columns that carry ``log w``.

Legend: K latent thoughts per token, J Jacobi sweeps, S tokens of a sequence, H hidden size.
"""

from dataclasses import dataclass
from typing import Literal

# A backward pass does two products of the same size for each product of the forward pass.
BACKWARD_PER_FORWARD = 2


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
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.kv_channels

    @property
    def key_value_size(self) -> int:
        """Width of all key heads and all value heads together."""
        return 2 * self.num_query_groups * self.kv_channels

    @property
    def layer_weights(self) -> int:
        """Elements of the weight matrices of one layer."""
        attention = (
            self.hidden_size * (self.query_size + self.key_value_size) + self.query_size * self.hidden_size
        )
        num_products = 3 if self.is_gated else 2
        return attention + num_products * self.hidden_size * self.ffn_hidden_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Number of unique parameters, by where they live."""

    embedding: int
    layers: int
    final_norm: int
    head: int
    router: int

    @property
    def total(self) -> int:
        """All unique parameters."""
        return self.embedding + self.layers + self.final_norm + self.head + self.router

    @property
    def non_embedding(self) -> int:
        """All but embedding and head: the count by which models of the field are named."""
        return self.total - self.embedding - self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFlops:
    """Operations per token of one training step, forward and backward, by phase.

    ``recompute`` stands apart: it is work of the hardware, not of the model.
    """

    build_up: float
    sweeps: float
    final: float
    head: float
    router: float
    mixture: float
    recompute: float

    @property
    def model(self) -> float:
        """What the method asks for, recomputation left out (the numerator of MFU)."""
        return self.build_up + self.sweeps + self.final + self.head + self.router + self.mixture

    @property
    def hardware(self) -> float:
        """What is really computed (the numerator of HFU)."""
        return self.model + self.recompute


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopsAccount:
    """The cost of a method on a model.

    Args:
        method: ``vanilla``, ``ponderlm2`` or ``ponderlm3``.
        num_latent_thoughts: K; 0 for ``vanilla``.
        interpolation: thoughts are mixtures of embeddings under the head's distribution.
        mixture_size: embeddings in such a mixture; None means the whole vocabulary.
        recompute: what backward computes again: nothing, the core attention, or all layers.
    """

    shape: ModelShape
    method: Literal["vanilla", "ponderlm2", "ponderlm3"]
    num_latent_thoughts: int = 0
    interpolation: bool = False
    mixture_size: int | None = None
    recompute: Literal["none", "selective", "full"] = "none"

    @property
    def router_weights(self) -> int:
        """Elements of the two matrices of the router; 0 without one."""
        if self.method != "ponderlm3":
            return 0
        hidden = self.shape.hidden_size
        return hidden * (hidden // 4) + (hidden // 4) * (self.num_latent_thoughts + 1)

    def parameters(self) -> ParameterCount:
        """Count the unique parameters; weights shared between passes count once."""
        shape = self.shape
        table = shape.padded_vocab_size * shape.hidden_size
        has_biases = shape.architecture == "gpt_neox"
        norm = shape.hidden_size * (2 if has_biases else 1)
        biases = shape.query_size + shape.key_value_size + 2 * shape.hidden_size + shape.ffn_hidden_size
        layer = shape.layer_weights + 2 * norm + (biases if has_biases else 0)
        router_biases = shape.hidden_size // 4 + self.num_latent_thoughts + 1
        return ParameterCount(
            embedding=table,
            layers=shape.num_layers * layer,
            final_norm=norm,
            head=0 if shape.tied_embeddings else table,
            router=self.router_weights + router_biases if self.method == "ponderlm3" else 0,
        )

    def num_passes(self, num_jacobi_iterations: float) -> float:
        """Return how often a training forward goes through the layers: K + J + 1, or 1 without thoughts."""
        return self.num_latent_thoughts + self._sweeps(num_jacobi_iterations) + 1

    def training_rows_per_token(self, num_jacobi_iterations: float) -> float:
        """Return the rows per token over all passes of a training forward."""
        thoughts = self.num_latent_thoughts
        build_up = thoughts * (thoughts + 1) // 2
        return build_up + (self._sweeps(num_jacobi_iterations) + 1) * (thoughts + 1)

    def inference_rows_per_token(self, mean_steps: float) -> float:
        """Return the rows per token of cached decoding; only ``ponderlm3`` follows the steps taken."""
        return 1 + (mean_steps if self.method == "ponderlm3" else self.num_latent_thoughts)

    def effective_depth(self, mean_steps: float | None = None) -> float:
        """Return the layers that lie behind one prediction of a decoder; None means all K steps."""
        steps = self.num_latent_thoughts if mean_steps is None else mean_steps
        return self.shape.num_layers * self.inference_rows_per_token(steps)

    def training_flops(self, num_jacobi_iterations: float) -> TrainingFlops:
        """Account one training step per token.

        Args:
            num_jacobi_iterations: J, or its mean where it is drawn anew for each step.
        """
        thoughts, sweeps = self.num_latent_thoughts, self._sweeps(num_jacobi_iterations)
        step = 1 + BACKWARD_PER_FORWARD
        build_up = sum(self._pass_flops(rows) for rows in range(1, thoughts + 1))
        full_pass = self._pass_flops(thoughts + 1)
        refreshed_thoughts = thoughts * (thoughts + 1) // 2 + sweeps * thoughts
        passes = self.num_passes(num_jacobi_iterations)
        return TrainingFlops(
            build_up=step * build_up,
            sweeps=step * sweeps * full_pass,
            final=step * full_pass,
            head=step * self._head_flops(),
            # The router reads slot 0 after every pass: for the mask of the next one, and for the readout.
            router=step * passes * 2 * self.router_weights,
            mixture=step * refreshed_thoughts * self._mixture_flops(),
            recompute=self._recompute_flops(sweeps),
        )

    def training_per_token(self, num_jacobi_iterations: float) -> float:
        """Return the model operations per token of a training step, recomputation left out."""
        return self.training_flops(num_jacobi_iterations).model

    def inference_per_token(self, mean_steps: float) -> float:
        """Return the operations per token when each token takes ``mean_steps`` steps on average.

        Pruned slots leave no keys, so the attention counts kept rows only.
        """
        rows = self.inference_rows_per_token(mean_steps)
        mixtures = (rows - 1) * self._mixture_flops()
        return self._pass_flops(rows) + self._head_flops() + 2 * self.router_weights + mixtures

    def saved_fraction(self, mean_steps: float) -> float:
        """Return the share of inference operations that halting saves against taking all K steps."""
        return 1 - self.inference_per_token(mean_steps) / self.inference_per_token(self.num_latent_thoughts)

    def _sweeps(self, num_jacobi_iterations: float) -> float:
        return num_jacobi_iterations if self.num_latent_thoughts > 0 else 0

    def _pass_flops(self, rows_per_token: float) -> float:
        """Operations per token of one trip through all layers."""
        linear = 2 * rows_per_token * self.shape.layer_weights
        return self.shape.num_layers * (linear + self._attention_flops(rows_per_token))

    def _attention_flops(self, rows_per_token: float) -> float:
        """Scores and weighted values of one layer: every row of the pass against every row of the pass."""
        pairs_per_token = rows_per_token * rows_per_token * self.shape.seq_length
        return 2 * 2 * pairs_per_token * self.shape.query_size

    def _head_flops(self) -> float:
        return 2 * self.shape.padded_vocab_size * self.shape.hidden_size

    def _mixture_flops(self) -> float:
        """Operations for one thought as a mixture of embeddings: the distribution, then the product."""
        if not self.interpolation:
            return 0
        num_mixed = self.shape.padded_vocab_size if self.mixture_size is None else self.mixture_size
        return self._head_flops() + 2 * num_mixed * self.shape.hidden_size

    def _recompute_flops(self, sweeps: float) -> float:
        again = {"none": None, "selective": self._all_attention_flops, "full": self._pass_flops}[
            self.recompute
        ]
        if again is None:
            return 0
        thoughts = self.num_latent_thoughts
        return sum(again(rows) for rows in range(1, thoughts + 1)) + (sweeps + 1) * again(thoughts + 1)

    def _all_attention_flops(self, rows_per_token: float) -> float:
        return self.shape.num_layers * self._attention_flops(rows_per_token)
