"""Exact accounting of parameters and floating-point operations, from the model's shape alone.

Counted are the matrix products, two operations per multiply-add, as ``torch.utils.flop_counter`` counts them:
attention scores and values over all pairs of rows of a pass, masked or not. Not counted are norms,
activations, softmax, the lookup of embeddings, and the extra key columns that carry ``log w``.

Legend: K extra steps per token, J Jacobi sweeps, S tokens of a sequence, H hidden size.
"""

from dataclasses import dataclass
from typing import Literal

from megatron_ext.ponder.config import Method, Mixture
from pipeline.model_shape import ModelShape, ParameterCount

# A backward pass does two products of the same size for each product of the forward pass.
BACKWARD_PER_FORWARD = 2

# The hidden layer of a gate, over H (definitions 3.2), and of the router, under H (definitions 2.5).
GATE_WIDENING, ROUTER_NARROWING = 4, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFlops:
    """Operations per token of one training step, forward and backward, by phase.

    ``final`` is the pass whose output is read, ``build_up`` the passes before it but for the Jacobi
    ``sweeps``. ``recompute`` stands apart: it is work of the hardware, not of the model.
    """

    build_up: float
    sweeps: float
    final: float
    head: float
    router: float
    gates: float
    mixture: float
    recompute: float

    @property
    def model(self) -> float:
        """What the method asks for, recomputation left out (the numerator of MFU)."""
        passes = self.build_up + self.sweeps + self.final
        return passes + self.head + self.router + self.gates + self.mixture

    @property
    def hardware(self) -> float:
        """What is really computed (the numerator of HFU)."""
        return self.model + self.recompute


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopsAccount:
    """The cost of a method on a model.

    Args:
        method: which method.
        num_latent_thoughts: K; 0 for ``vanilla``.
        mixture: what a step feeds back; mixtures cost a head and a product with embeddings.
        recompute: what backward computes again: nothing, the core attention, or all layers, one by one
            (``full``) or a pass at a time (``per_pass``), which is the same work.
    """

    shape: ModelShape
    method: Method
    num_latent_thoughts: int = 0
    mixture: Mixture = Mixture.HIDDEN
    recompute: Literal["none", "selective", "full", "per_pass"] = "none"

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
        final = self._pass_flops(self.final_rows)
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
        )

    def training_per_token(self, num_jacobi_iterations: float) -> float:
        """Return the model operations per token of a training step, recomputation left out."""
        return self.training_flops(num_jacobi_iterations).model

    def inference_per_token(self, mean_steps: float) -> float:
        """Return the operations per token when each token takes ``mean_steps`` steps on average.

        Pruned slots leave no keys, so the attention counts kept rows only. Every step taken starts from a
        mixture, where the method has any. A gate is read after every iteration but the K-th, also after the
        one at which a token halts; taken at a mean, this is at most one gate too many.
        """
        rows = self.inference_rows_per_token(mean_steps)
        layers = self._pass_flops(rows) if self.method.has_slots else rows * self._pass_flops(1)
        gates = min(rows, self.num_latent_thoughts) * 2 * self.gate_weights
        mixtures = (rows - 1) * self._mixture_flops()
        return layers + self._head_flops() + 2 * self.router_weights + gates + mixtures

    def saved_fraction(self, mean_steps: float) -> float:
        """Return the share of inference operations that halting saves against taking all K steps."""
        return 1 - self.inference_per_token(mean_steps) / self.inference_per_token(self.num_latent_thoughts)

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
        linear = 2 * rows_per_token * self.shape.layer_weights
        return self.shape.num_layers * (linear + self._attention_flops(rows_per_token))

    def _attention_flops(self, rows_per_token: float) -> float:
        """Scores and weighted values of one layer: every row of the pass against every row of the pass."""
        pairs_per_token = rows_per_token * rows_per_token * self.shape.seq_length
        return 2 * 2 * pairs_per_token * self.shape.query_size

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
        again = self._all_attention_flops if self.recompute == "selective" else self._pass_flops
        return sum(again(rows) for rows in self.build_up_rows) + (sweeps + 1) * again(self.final_rows)

    def _all_attention_flops(self, rows_per_token: float) -> float:
        return self.shape.num_layers * self._attention_flops(rows_per_token)
