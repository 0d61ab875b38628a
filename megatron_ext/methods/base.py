"""The interface of a pondering method: its pass plan, what enters and leaves each pass, what is read.

The model runs the passes; a method only defines their inputs and outputs, so that the same method serves a
single process, tensor and sequence parallelism, and passes that are spread over pipeline stages.

S = tokens held by this rank, n = slots in the pass, B = micro-batch, H = hidden size, K = extra steps.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Self

import torch
from torch import Tensor, nn

from megatron_ext.model.memory import PassMemory
from megatron_ext.parallel.context import TokenAxes
from megatron_ext.ponder.config import MethodFacts, PonderConfig
from megatron_ext.ponder.decode.sweeps import PromptTokens
from megatron_ext.ponder.decode.think import (
    Observer,
    RowRunner,
    StepHalting,
    Thinking,
    Thought,
    ignore,
    think,
    think_in_rows,
)
from megatron_ext.ponder.passes import PassPlan
from megatron_ext.ponder.penalties import LabelScores
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits

Mixer = Callable[[Tensor], Tensor]


class Column(Enum):
    """The meaning of the number that accompanies each row of a pass."""

    NONE = "none"
    LOG_WEIGHT = "log weight of the row's key"
    ACTIVE = "1 where the row's token is still active, else 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRows:
    """The rows that move through the layers of a pass, and from the end of one pass to the next.

    Attributes:
        rows: [R, B, H].
        column: one number per row, [R, B] in at least float32, or None.
    """

    rows: Tensor
    column: Tensor | None = None


@dataclass(slots=True, kw_only=True)
class PassContext:
    """What the methods may use while they work on one micro-batch.

    Attributes:
        plan: the passes of this forward; it becomes shorter where sweeps converge.
        real: [S_all, B] bool, False at padding; all tokens, also under sequence and context parallelism.
        axis: the axes over which tokens are spread.
        mix_embeddings: rows [R, B, H] -> softmax mixture of unscaled embeddings [R, B, H].
        has_label: [S_all, B] bool, tokens whose successor is to be predicted.
        score_labels: hidden states [S, B, H] -> how well the head predicts the label of each token from them,
            [S_all, B], without gradient; of no meaning where there is no label.
        memory: what this rank keeps from pass to pass.
        prune: hard mask: pruned slots have no keys and no share in the readout.
        damped: whether decisions of the router are damped where the method says so.
        bottom_k_fraction: q of the bottom-k penalty.
        observe: called with the name and value of intermediate results, for verification.
        pondering_share: a of a blended start (definitions 2.9); 1 is the method as it is.
        holds_decisions: router or gates learn nothing: their logits are used without gradient.
        measures_steps: also give what :attr:`Readout.one_step_more` needs.
        real_rows: [N] int64, where the real tokens are among all S B, so that nothing needs to wait for their
            number; None where it is not known.
        sweep_tolerance: sweeps end where the residual of one, over the micro-batch, is at most this; None: J
            sweeps run whatever it is.
        skips_pruned_rows: rows of slots that a token does not take are not computed.
        last_slot: with `skips_pruned_rows`, the last slot of each token that runs in the next pass, [S, B]
            int64; None before a pass has decided.
        statistics: additive sums over the micro-batch, collected by the methods.
    """

    plan: PassPlan
    real: Tensor
    axis: TokenAxes
    mix_embeddings: Mixer
    has_label: Tensor
    score_labels: Callable[[Tensor], LabelScores]
    memory: PassMemory
    prune: bool
    damped: bool
    bottom_k_fraction: float
    observe: Observer
    pondering_share: float = 1.0
    holds_decisions: bool = False
    measures_steps: bool = False
    real_rows: Tensor | None = None
    sweep_tolerance: float | None = None
    skips_pruned_rows: bool = False
    last_slot: Tensor | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """The result of the final pass.

    Attributes:
        hidden: [S, B, H], goes to the head.
        penalty: scalar to be weighted and added to the loss, or None.
        penalty_of: gives the penalty instead, from how well the labels are predicted from `hidden`; or None.
        steps: steps taken by every token, [S_all, B] int64, or None where all take K.
        step_scores: what the threshold is compared with, [S_all, B, K], non-increasing: a token takes the
            steps whose score reaches it. None where all take K.
        of_steps: hidden states of all steps, [S, K + 1, B, H], where the loss or a measurement needs them.
        one_step_more: what would be read if every token took one step more, [S, B, H], where it is measured.
        regularizer: scalar to be added to the loss as it is, or None.
    """

    hidden: Tensor
    penalty: Tensor | None = None
    penalty_of: Callable[[LabelScores], Tensor] | None = None
    steps: Tensor | None = None
    step_scores: Tensor | None = None
    of_steps: Tensor | None = None
    one_step_more: Tensor | None = None
    regularizer: Tensor | None = None


class PonderMethod(nn.Module):
    """Base of the methods: one pass, the hidden state itself is read.

    Attributes:
        halting: ends the thoughts of a token in a decoder under limits with a signal.
    """

    halting: StepHalting | None = None

    def __init__(self, config: PonderConfig, hidden_size: int, *, decides: bool = True) -> None:
        """Keep the settings.

        Args:
            config: the method's settings.
            hidden_size: H.
            decides: hold the weights that read hidden states after the final norm: on the last pipeline
                stage.
        """
        super().__init__()
        self.config = config
        self.hidden_size = hidden_size
        self.decides = decides

    def under(self, limits: StepLimits) -> Self:
        """Return this method under limits: a view with other settings and the same weights."""
        if limits == UNLIMITED:
            return self
        # A shallow copy shares the dictionaries of parameters and submodules.
        view = copy.copy(self)
        view.config = limits.apply(self.config)
        return view

    @property
    def facts(self) -> MethodFacts:
        """The facts of this method."""
        return self.config.method.facts

    @staticmethod
    def decided(logits: Tensor, context: PassContext) -> Tensor:
        """Return logits of the router or a gate as this forward uses them; the shape is kept."""
        return logits.detach() if context.holds_decisions else logits

    @property
    def column(self) -> Column:
        """The kind of number that accompanies every row of a pass."""
        if self.facts.weighs_slots:
            return Column.LOG_WEIGHT
        return Column.ACTIVE if self.facts.halts_in_training else Column.NONE

    @property
    def prunes_in_training(self) -> bool:
        """Whether the training forward depends on tau."""
        hides_keys = self.facts.weighs_slots and self.config.form.hides_keys
        return self.facts.halts_in_training or hides_keys

    @property
    def iterates(self) -> bool:
        """Whether a token has several versions of keys and values, because it runs again in its place."""
        return self.facts.iterates

    @property
    def embedding_scale(self) -> float:
        """c, the factor on token embeddings (definitions 2.2, 3.1 and 4)."""
        if "scale_embeds" not in self.facts.settings or not self.config.scale_embeds:
            return 1.0
        is_wide = self.facts.has_wide_embeddings and not self.mixes_embeddings
        return math.sqrt((2.5 if is_wide else 1.0) * self.hidden_size)

    @property
    def mixes_embeddings(self) -> bool:
        """Whether a pass ends with a mixture of embeddings, so that the last stage needs them."""
        return self.facts.mixes(self.config.mixture)

    def plan(self, num_jacobi_iterations: int) -> PassPlan:
        """Return the passes of one forward with J sweeps."""
        return self.facts.plan(self.config.num_latent_thoughts, num_jacobi_iterations)

    def tokens_of_rows(self, tokens: Tensor) -> Tensor:
        """Return the tokens whose embeddings form the first pass: [B, S] -> [B, S * n]."""
        return tokens

    def slots_read(self, index: int, context: PassContext) -> range:
        """Return the slots of each token that :meth:`leave` or :meth:`read` gets after pass `index`."""
        plan = context.plan
        if plan.is_final(index) and context.pondering_share < 1:
            # The readout is blended with what slot 0 predicts.
            return range(plan.slots[index])
        return self.facts.slots_read(index, plan)

    def enter(
        self, index: int, embed: Callable[[], Tensor], handed: PassRows | None, context: PassContext
    ) -> PassRows:
        """Make the rows of pass `index`, on the first pipeline stage.

        Args:
            index: 0-based.
            embed: gives the scaled embeddings of :meth:`tokens_of_rows`, [S * n, B, H].
            handed: from the end of the previous pass; None in the first.
            context: the micro-batch.
        """
        del index, handed, context
        return PassRows(rows=embed())

    def normalizes(self, index: int, plan: PassPlan) -> bool:
        """Return whether pass `index` ends with the final norm."""
        return self.facts.norms_each_pass or plan.is_final(index)

    def leave(self, index: int, ended: PassRows, context: PassContext) -> PassRows:
        """Make what the next pass needs from the end of pass `index`, which is not the final one.

        Args:
            index: 0-based.
            ended: hidden states of :meth:`slots_read`, [S * n, B, H], and the column that the pass was
                entered with.
            context: the micro-batch.
        """
        raise AssertionError("a method of one pass hands nothing to a next one")

    def read(self, ended: PassRows, context: PassContext) -> Readout:
        """Read the final pass.

        Args:
            ended: hidden states of :meth:`slots_read` after the final norm, [S * n, B, H], and the pass's
                column.
            context: the micro-batch.
        """
        del context
        return Readout(hidden=ended.rows)

    def think(self, rows: Tensor, mix_embeddings: Mixer, observe: Observer = ignore) -> Thinking:
        """Consume one token of each of N sequences in decoding.

        Args:
            rows: scaled embeddings of :meth:`tokens_of_rows` of the tokens, [n, N, H].
            mix_embeddings: see :class:`PassContext`.
            observe: called with the name and value of intermediate results.
        """
        del mix_embeddings, observe
        return think_in_rows(rows)

    def read_prompts(
        self,
        rows: Tensor,
        run: RowRunner,
        mix_embeddings: Mixer,
        prompts: PromptTokens,
        observe: Observer = ignore,
    ) -> Thought:
        """Consume many tokens of each of several sequences at once.

        The default is :meth:`think`: a row that iterates in place reads rows of its own iteration only.

        Args:
            rows: scaled embeddings of :meth:`tokens_of_rows` of the N tokens, [1, N * n, H].
            run: see :class:`RowRunner`.
            mix_embeddings: see :class:`PassContext`.
            prompts: whose tokens they are.
            observe: called with the name and value of intermediate results.
        """
        del prompts
        return think(self.think(rows, mix_embeddings, observe), run)

    def statistics_layout(self) -> dict[str, int]:
        """Return names and sizes of the sums that a forward adds to :attr:`PassContext.statistics`."""
        return {}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the method's own weights to their initial values."""


def build_decider(config: PonderConfig, hidden_size: int) -> nn.Sequential | nn.Linear:
    """Build one network by which tokens halt, as the facts of the method describe it."""
    decider = config.decider
    assert decider is not None, f"{config.method} does not halt"
    outputs = decider.outputs(config.num_latent_thoughts)
    if decider.inner is None:
        return nn.Linear(hidden_size, outputs)
    inner = decider.inner(hidden_size)
    return nn.Sequential(nn.Linear(hidden_size, inner), nn.GELU(), nn.Linear(inner, outputs))
