"""Exact accounting of parameters and floating-point operations, from the model's shape alone.

Counted are the matrix products, two operations per multiply-add, attention over the pairs of rows that see
each other, as Megatron-LM counts them; the pairs that a causal mask takes away stand apart. Not counted are
norms, activations, softmax and the lookup of embeddings, nor that documents in a row do not see each other.

Legend: K extra steps per token, J Jacobi sweeps, S tokens of a sequence, H hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from megatron_ext.ponder.config import Method, Mixture
from pipeline.cost.flop_counts import InferenceFlops, TrainingFlops
from pipeline.cost.shape import ModelShape, ParameterCount

# A backward pass does two products of the same size for each product of the forward pass.
BACKWARD_PER_FORWARD = 2

# The hidden layer of a gate, over H (definitions 3.2), and of the router, under H (definitions 2.5).
GATE_WIDENING, ROUTER_NARROWING = 4, 4

# Keys that carry a weight have a channel for it in float32 and two in bfloat16, and zeros up to a multiple.
WEIGHT_CHANNELS = {"fp32": 1, "bf16": 2}
HEAD_SIZE_STEP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopsAccount:
    """The cost of a method on a model.

    Args:
        method: which method.
        num_latent_thoughts: K; 0 for ``vanilla``.
        mixture: what a step feeds back; mixtures cost a head and a product with embeddings.
        recompute: what backward computes again: nothing, the core attention, or all layers, one by one
            (``full``) or a pass at a time (``per_pass``), which is the same work.
        precision: of weights and keys; decides how many channels the weight of a key takes.
    """

    shape: ModelShape
    method: Method
    num_latent_thoughts: int = 0
    mixture: Mixture = Mixture.HIDDEN
    recompute: Literal["none", "selective", "full", "per_pass"] = "none"
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def halts(self) -> bool:
        """Whether tokens take different numbers of steps."""
        return self.method.halts

    @property
    def build_up_rows(self) -> tuple[int, ...]:
        """Rows per token of each pass before sweeps and final pass."""
        steps = range(1, self.num_latent_thoughts + 1)
        if self.method.has_sweeps:
            return tuple(steps)
        return () if self.method == Method.PAUSE else tuple(1 for _ in steps)

    @property
    def final_rows(self) -> int:
        """Rows per token of the final pass, and of a sweep."""
        return self.num_latent_thoughts + 1 if self.method.has_slots else 1

    def num_passes(self, num_jacobi_iterations: float) -> float:
        """Return how often a training forward goes through the layers."""
        return len(self.build_up_rows) + self._sweeps(num_jacobi_iterations) + 1

    def training_rows_per_token(self, num_jacobi_iterations: float) -> float:
        """Return the rows per token over all passes of a training forward (definitions 5)."""
        return sum(self.build_up_rows) + (self._sweeps(num_jacobi_iterations) + 1) * self.final_rows

    def inference_rows_per_token(self, mean_steps: float) -> float:
        """Return the rows per token of cached decoding; only methods that halt follow the steps taken."""
        return 1 + (mean_steps if self.halts else self.num_latent_thoughts)

    def effective_depth(self, mean_steps: float | None = None) -> float:
        """Return the layers that lie behind one prediction of a decoder; None means all K steps."""
        if self.method == Method.PAUSE:
            # Pause tokens go through the layers side by side with their token.
            return self.shape.num_layers
        steps = self.num_latent_thoughts if mean_steps is None else mean_steps
        return self.shape.num_layers * self.inference_rows_per_token(steps)

    def parameters(self) -> ParameterCount:
        """Count the unique parameters; weights shared between passes count once."""
        shape = self.shape
        steps, wide = self.num_latent_thoughts, GATE_WIDENING * shape.hidden_size
        router_biases = shape.hidden_size // ROUTER_NARROWING + steps + 1
        return ParameterCount(
            embedding=shape.vocabulary_weights,
            layers=shape.num_layers * shape.layer_parameters,
            final_norm=shape.norm_parameters,
            head=0 if shape.tied_embeddings else shape.vocabulary_weights,
            router=self.router_weights + router_biases if self.method == Method.PONDERLM3 else 0,
            gates=steps * (self.gate_weights + wide + 1) if self.method == Method.ADAPONDERLM else 0,
        )

    @property
    def router_weights(self) -> int:
        """Elements of the two matrices of the router; 0 without one."""
        if self.method != Method.PONDERLM3:
            return 0
        narrow = self.shape.hidden_size // ROUTER_NARROWING
        return self.shape.hidden_size * narrow + narrow * (self.num_latent_thoughts + 1)

    @property
    def gate_weights(self) -> int:
        """Elements of the two matrices of one iteration's gate; 0 without gates."""
        if self.method != Method.ADAPONDERLM:
            return 0
        wide = GATE_WIDENING * self.shape.hidden_size
        return self.shape.hidden_size * wide + wide

    def training_flops(self, num_jacobi_iterations: float) -> TrainingFlops:
        """Account one training step per token.

        Args:
            num_jacobi_iterations: J, or its mean where it is drawn anew for each step.
        """
        sweeps = self._sweeps(num_jacobi_iterations)
        step = 1 + BACKWARD_PER_FORWARD
        # A pass whose attention is computed again in backward runs it once more.
        attention_step = step + (self.recompute != "none")
        final = self._pass_flops(self.final_rows)
        weighted, masked = self._weighted_channels(sweeps), self._masked_channels(sweeps)
        return TrainingFlops(
            build_up=step * sum(self._pass_flops(rows) for rows in self.build_up_rows),
            sweeps=step * sweeps * final,
            final=step * final,
            head=step * self._head_flops(),
            # The router reads slot 0 after every pass: for the mask of the next one, and for the readout.
            router=step * self.num_passes(num_jacobi_iterations) * 2 * self.router_weights,
            gates=step * self.num_latent_thoughts * 2 * self.gate_weights,
            mixture=step * self._num_mixtures(sweeps) * self._mixture_flops(),
            recompute=self._recompute_flops(sweeps),
            weight_columns=attention_step * self._product_flops(weighted),
            masked=attention_step * self._product_flops(masked),
        )

    def training_per_token(self, num_jacobi_iterations: float) -> float:
        """Return the model operations per token of a training step, recomputation left out."""
        return self.training_flops(num_jacobi_iterations).model

    def inference_flops(
        self, mean_steps: float, *, full_share: float | None = None, tokens_before: float | None = None
    ) -> InferenceFlops:
        """Account cached decoding, in which pruned slots leave no keys and every step starts from a mixture.

        Args:
            mean_steps: extra steps that a token takes on average.
            full_share: share of tokens that take all K steps. A gate is read after every iteration but the
                K-th, so it decides how many gates are read; None assumes as many as the mean allows, which
                is at most one too many.
            tokens_before: tokens that a token can see before it; None is the mean over a whole sequence.
        """
        rows, before = self.inference_rows_per_token(mean_steps), tokens_before
        before = (self.shape.seq_length - 1) / 2 if before is None else before
        # A slot sees all kept rows; an iteration sees its own version of every earlier token.
        kept, own = (rows * before, (rows + 1) / 2) if self.method.has_slots else (before, 1)
        pairs = rows * (kept + own)
        steps = self.num_latent_thoughts
        gates = min(rows, steps) if full_share is None else rows - full_share
        channels = self._weight_channels * self.shape.num_attention_heads
        return InferenceFlops(
            layers=2 * rows * self.shape.num_layers * self.shape.layer_weights,
            attention=self._product_flops(pairs * self.shape.query_size),
            head=self._head_flops(),
            router=2 * self.router_weights,
            gates=gates * 2 * self.gate_weights,
            mixture=(rows - 1) * self._mixture_flops(),
            weight_columns=self._product_flops(pairs * channels),
        )

    def inference_per_token(self, mean_steps: float, *, full_share: float | None = None) -> float:
        """Return the model operations per token of decoding a whole sequence."""
        return self.inference_flops(mean_steps, full_share=full_share).model

    def saved_fraction(self, mean_steps: float, *, full_share: float | None = None) -> float:
        """Return the share of inference operations that halting saves against taking all K steps."""
        spent = self.inference_per_token(mean_steps, full_share=full_share)
        return 1 - spent / self.inference_per_token(self.num_latent_thoughts)

    def _sweeps(self, num_jacobi_iterations: float) -> float:
        has_sweeps = self.method.has_sweeps and self.num_latent_thoughts > 0
        return num_jacobi_iterations if has_sweeps else 0

    def _num_mixtures(self, sweeps: float) -> float:
        """Mixtures per token of a training forward: a pass refreshes all thoughts that there are by then."""
        if self.method.has_sweeps:
            return sum(self.build_up_rows) + sweeps * self.num_latent_thoughts
        return self.num_latent_thoughts

    def _pass_flops(self, rows_per_token: float) -> float:
        """Operations per token of one trip through all layers."""
        linear = 2 * rows_per_token * self.shape.num_layers * self.shape.layer_weights
        return linear + self._attention_flops(rows_per_token)

    def _attention_flops(self, rows_per_token: float) -> float:
        """Scores and weighted values of a pass, in all layers."""
        return self._product_flops(self._visible_pairs(rows_per_token) * self.shape.query_size)

    def _product_flops(self, pair_channels: float) -> float:
        """Scores and weighted values of all layers, for so many channels of pairs of rows per token."""
        return 2 * 2 * self.shape.num_layers * pair_channels

    def _visible_pairs(self, rows_per_token: float) -> float:
        """Pairs of rows per token of a causal pass: row i sees rows 0..i."""
        return rows_per_token * (rows_per_token * self.shape.seq_length + 1) / 2

    def _all_pairs(self, rows_per_token: float) -> float:
        """Pairs of rows per token of a pass, masked or not."""
        return rows_per_token * rows_per_token * self.shape.seq_length

    @property
    def _weight_channels(self) -> int:
        """Further channels of a weighted key and its value."""
        if self.method is not Method.PONDERLM3:
            return 0
        columns = WEIGHT_CHANNELS[self.precision]
        return columns + -(self.shape.kv_channels + columns) % HEAD_SIZE_STEP

    def _weighted_channels(self, sweeps: float) -> float:
        """Further channels of visible pairs per token, over all passes: only the first one has no weights."""
        pairs = self._over_passes(self._visible_pairs, sweeps) - self._first_pass(self._visible_pairs)
        return pairs * self._weight_channels * self.shape.num_attention_heads

    def _masked_channels(self, sweeps: float) -> float:
        """Channels of masked pairs per token, over all passes."""

        def masked(rows: float) -> float:
            return self._all_pairs(rows) - self._visible_pairs(rows)

        pairs = self._over_passes(masked, sweeps)
        further = self._weight_channels * self.shape.num_attention_heads
        return pairs * self.shape.query_size + (pairs - self._first_pass(masked)) * further

    def _over_passes(self, per_pass: Callable[[float], float], sweeps: float) -> float:
        """Sum something over the passes of a forward, by their rows per token."""
        return sum(per_pass(rows) for rows in self.build_up_rows) + (sweeps + 1) * per_pass(self.final_rows)

    def _first_pass(self, per_pass: Callable[[float], float]) -> float:
        return per_pass(self.build_up_rows[0] if self.build_up_rows else self.final_rows)

    def _head_flops(self) -> float:
        return 2 * self.shape.vocabulary_weights

    def _mixture_flops(self) -> float:
        """Operations for one mixture of embeddings: the distribution, then the product.

        A mixture of the largest logits is computed by masking the others, so it costs no less.
        """
        return 0 if self.mixture == Mixture.HIDDEN else 2 * self._head_flops()

    def _recompute_flops(self, sweeps: float) -> float:
        if self.recompute == "none":
            return 0
        again = self._attention_flops if self.recompute == "selective" else self._pass_flops
        return self._over_passes(again, sweeps)
