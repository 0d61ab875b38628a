"""What a pondering method is: a plan of passes, what enters each, what one hands to the next, what is read.

The model runs the passes; a method only says what goes in and what comes out, so that the same method serves
a single process, tensor and sequence parallelism, and passes that are spread over pipeline stages.

S = tokens held by this rank, n = slots in the pass, B = micro-batch, H = hidden size, K = latent thoughts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from megatron_ext.parallel.tensor import TensorAxis
from megatron_ext.ponder.config import PonderConfig
from megatron_ext.ponder.passes import PassPlan

Observer = Callable[[str, Tensor], None]


@dataclass(slots=True, kw_only=True)
class PassContext:
    """What the methods may use of one micro-batch.

    Attributes:
        real: [S_all, B] bool, False at padding; all tokens, also under sequence parallelism.
        axis: the tensor axis.
        mix_embeddings: rows [R, B, H] -> softmax mixture of unscaled embeddings [R, B, H].
        prune: hard mask: pruned slots have no keys and no share in the readout.
        observe: called with the name and value of intermediate results, for verification.
        statistics: additive sums over the micro-batch, collected by the methods.
    """

    real: Tensor
    axis: TensorAxis
    mix_embeddings: Callable[[Tensor], Tensor]
    prune: bool = False
    observe: Observer = lambda name, value: None
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassInput:
    """What enters a pass.

    Attributes:
        rows: [S * n, B, H].
        log_weight: log w of each slot's key column, [S, n, B], or None where all are 0.
    """

    rows: Tensor
    log_weight: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCarry:
    """What one pass hands to the next.

    Attributes:
        thoughts: [S, m, B, H], the latent thoughts the next pass reads.
        log_weight: [S, m + 1, B] for the next pass, or None.
    """

    thoughts: Tensor
    log_weight: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """What is read from the final pass.

    Attributes:
        hidden: [S, B, H], goes to the head.
        penalty: scalar to be weighted and added to the loss, or None.
        steps: steps taken by every token, [S_all, B] int64, or None where all take K.
    """

    hidden: Tensor
    penalty: Tensor | None = None
    steps: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Halting:
    """How one token goes on after its slot 0, in decoding.

    Attributes:
        log_weights: [k], log w of the slots still to run.
        shares: [k + 1], share of each slot in the readout.
    """

    log_weights: Tensor
    shares: Tensor


class PonderMethod(nn.Module):
    """Base of the methods: no thoughts, one pass, the hidden state itself is read."""

    def __init__(self, config: PonderConfig, hidden_size: int) -> None:
        """Keep the settings.

        Args:
            config: the method's settings.
            hidden_size: H.
        """
        super().__init__()
        self.config = config
        self.hidden_size = hidden_size

    @property
    def embedding_scale(self) -> float:
        """c, the factor on token embeddings."""
        return 1.0

    def plan(self, num_jacobi_iterations: int) -> PassPlan:
        """The passes of one forward with J sweeps."""
        del num_jacobi_iterations
        return PassPlan(slots=(1,))

    def enter(self, plan: PassPlan, index: int, embeddings: Tensor, carry: PassCarry | None) -> PassInput:
        """Make the rows of pass `index`.

        Args:
            plan: the passes of this forward.
            index: 0-based.
            embeddings: [S, B, H], scaled.
            carry: from the previous pass; None in the first.
        """
        del plan, index, carry
        return PassInput(rows=embeddings)

    def leave(
        self, plan: PassPlan, index: int, hidden: Tensor, carry: PassCarry | None, context: PassContext
    ) -> PassCarry:
        """Make what the next pass needs from the output of pass `index`, which is not the final one.

        Args:
            plan: the passes of this forward.
            index: 0-based.
            hidden: [S * n, B, H] after the final norm.
            carry: what pass `index` was entered with.
            context: the micro-batch.
        """
        raise AssertionError("a method of one pass has nothing to hand on")

    def read(self, hidden: Tensor, context: PassContext) -> Readout:
        """Read the final pass.

        Args:
            hidden: [S * n, B, H] after the final norm.
            context: the micro-batch.
        """
        del context
        return Readout(hidden=hidden)

    def halt(self, first_hidden: Tensor) -> Halting:
        """Decide in decoding which slots follow slot 0.

        Args:
            first_hidden: h^0 of one token, [1, 1, H].
        """
        return Halting(log_weights=first_hidden.new_zeros(0), shares=first_hidden.new_ones(1))

    def next_thought(self, hidden: Tensor, mix_embeddings: Callable[[Tensor], Tensor]) -> Tensor:
        """Make the input of the next slot from the hidden state of this one; shapes are kept.

        Args:
            hidden: [R, B, H].
            mix_embeddings: see :class:`PassContext`.
        """
        del mix_embeddings
        return hidden

    def statistics_layout(self) -> dict[str, int]:
        """Names and sizes of the sums that a forward collects in :attr:`PassContext.statistics`."""
        return {}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the method's own weights to their start values."""
