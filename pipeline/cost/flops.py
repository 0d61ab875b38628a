"""Exact accounting of parameters and floating-point operations, from the model's shape alone.

Counted are the matrix products, two operations per multiply-add, and attention over the pairs of rows that
see each other, as in Megatron-LM; the pairs that a causal mask removes are a part of their own. Not counted
are norms, activations, softmax and the lookup of embeddings, nor that documents in a row do not see each
other.

Legend: K extra steps per token, J Jacobi sweeps, S tokens of a sequence, H hidden size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import Literal

from megatron_ext.ponder.config import Decider, Method, MethodFacts, Mixture, Penalty, RouterForm
from megatron_ext.ponder.passes import PassPlan, mean_over_sweeps
from megatron_ext.ponder.step_limits import HaltingSignal
from pipeline.cost.shape import ModelShape, ParameterCount, Precision

Recompute = Literal["none", "full", "per_pass", "selective"]
# With these, backward does all products and attention of forward once more.
RECOMPUTING_LAYERS: tuple[Recompute, ...] = ("full", "per_pass")
# The last one is what backward computes again of norms, activations and attended values.
Phase = Literal["forward", "backward", "again"]

# A backward pass does two products of the same size for each product of the forward pass.
BACKWARD_PER_FORWARD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFlops:
    """Operations per token of one training step, forward and backward, by what they are spent on.

    The last three parts are not in :attr:`model`, because no method asks for them.

    Attributes:
        build_up: passes before the Jacobi sweeps, or before the final pass where there are none.
        sweeps: Jacobi sweeps.
        final: the pass whose output is read.
        head: the output layer.
        predictions: the output layer on single or fewer steps, without gradient, where the penalty asks for
            them.
        decider: the router or the gates.
        mixture: mixtures of embeddings.
        recompute: what is computed again: layers, and where functions are fused the logits of mixtures.
        weight_columns: the further channels of keys and values through which kernels take ``log w``.
        masked: pairs of rows that do not see each other, in all of the above: a kernel that works on whole
            matrices, and ``torch.utils.flop_counter``, count them; flash attention skips most.
    """

    build_up: float
    sweeps: float
    final: float
    head: float
    predictions: float
    decider: float
    mixture: float
    recompute: float
    weight_columns: float
    masked: float

    def towards(self, other: "TrainingFlops", share: float) -> "TrainingFlops":
        """Return the mean of a step like this one and, in a `share` of cases, one like the other."""
        values, others = asdict(self), asdict(other)
        return TrainingFlops(
            **{name: value + share * (others[name] - value) for name, value in values.items()}
        )

    @property
    def model(self) -> float:
        """What the method asks for (the numerator of MFU)."""
        passes = self.build_up + self.sweeps + self.final
        return passes + self.head + self.predictions + self.decider + self.mixture

    @property
    def hardware(self) -> float:
        """What a kernel that skips masked pairs computes (the numerator of HFU)."""
        return self.model + self.recompute + self.weight_columns

    @property
    def dense(self) -> float:
        """What whole matrices cost, and ``torch.utils.flop_counter`` counts."""
        return self.hardware + self.masked


def weighted_mean(parts: Sequence[tuple[float, TrainingFlops]]) -> TrainingFlops:
    """Return the mean of steps with weights that add up to 1."""
    values = [(share, asdict(flops)) for share, flops in parts]
    return TrainingFlops(**{name: sum(share * each[name] for share, each in values) for name in values[0][1]})


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceFlops:
    """Operations per token of cached decoding.

    Attributes:
        layers: products with the weights of the layers.
        attention: of the rows that run with those that are kept.
        head, decider, mixture: as in :class:`TrainingFlops`.
        weight_columns: as in :class:`TrainingFlops`; not in :attr:`model`.
    """

    layers: float
    attention: float
    head: float
    decider: float
    mixture: float
    weight_columns: float

    @property
    def model(self) -> float:
        """What the method asks for."""
        return self.layers + self.attention + self.head + self.decider + self.mixture

    @property
    def hardware(self) -> float:
        """What is computed."""
        return self.model + self.weight_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopsAccount:
    """The cost of a method on a model.

    The passes of a training forward come from the method's pass plan. Where J is drawn for each step, all
    costs of training take its mean.

    Args:
        method: which method.
        num_latent_thoughts: K; 0 for ``vanilla``.
        mixture: what a step feeds back; mixtures cost a head and a product with embeddings.
        form: of the router; decides how large it is and how often training asks it.
        penalty: what is penalised; some kinds cost further heads.
        recompute: what backward computes again: nothing, what costs no products (``selective``), or all
            layers, one by one (``full``) or a pass at a time (``per_pass``), which is the same work.
        precision: of weights and keys; decides how many channels the weight of a key takes.
        signal: what a decoder halts by in place of the method's own router; None: by that.
        supervises_steps: every step is read alone too, in training.
        gradient_passes: so many last passes have gradients; None: all.
        share_of_thoughts: where rows of pruned slots are left out in training, the share of rows of thoughts
            that run; None: all run, and other rows that need not be computed are left out.
        built_latent_thoughts: K that the weights are made for, where forwards are limited to fewer steps;
            None: the same.
        fuses: whether training mixes embeddings for some rows at a time and keeps no distribution.
    """

    shape: ModelShape
    method: Method
    num_latent_thoughts: int = 0
    mixture: Mixture = Mixture.HIDDEN
    form: RouterForm = field(default_factory=RouterForm)
    penalty: Penalty = Penalty.EXPECTED_STEPS
    recompute: Recompute = "none"
    precision: Precision = "fp32"
    signal: HaltingSignal | None = None
    supervises_steps: bool = False
    gradient_passes: int | None = None
    share_of_thoughts: float | None = None
    built_latent_thoughts: int | None = None
    fuses: bool = False

    @property
    def facts(self) -> MethodFacts:
        """What is known of the method."""
        return self.method.facts

    @property
    def decider(self) -> Decider | None:
        """The network by which tokens halt, or None."""
        return self.facts.decider_of(self.form)

    @property
    def halts(self) -> bool:
        """Whether tokens take different numbers of steps."""
        return self.facts.halts or self.signal is not None

    @property
    def scores_fewer_steps(self) -> bool:
        """Whether the penalty asks how well labels are predicted from fewer steps."""
        is_asked = self.facts.weighs_slots and self.penalty.is_adaptive
        return is_asked and self.num_latent_thoughts > 0

    @property
    def built_for(self) -> int:
        """K of the weights."""
        return self.num_latent_thoughts if self.built_latent_thoughts is None else self.built_latent_thoughts

    def limited_to(self, num_latent_thoughts: int) -> "FlopsAccount":
        """Return the account of the same weights limited to K steps."""
        if num_latent_thoughts == self.num_latent_thoughts:
            return self
        return replace(self, num_latent_thoughts=num_latent_thoughts, built_latent_thoughts=self.built_for)

    def plan(self, num_jacobi_iterations: int) -> PassPlan:
        """Return the passes of a training forward with J sweeps."""
        plan = self.facts.plan(self.num_latent_thoughts, num_jacobi_iterations)
        return plan.truncated(self.gradient_passes)

    def decides_after(self, index: int, plan: PassPlan) -> bool:
        """Whether a training forward runs the router, or a gate, on every token after pass `index`."""
        if self.decider is None:
            return False
        return self.decider.is_read_after(index, plan) and self.is_renewed_after(index, plan)

    def is_renewed_after(self, index: int, plan: PassPlan) -> bool:
        """Whether the router's form lets it decide again after pass `index`; any other decider does."""
        if not self.facts.weighs_slots:
            return True
        # The sweeps begin after as many passes as there are thoughts.
        num_thoughts = plan.first_sweep
        share = self.form.renewal.share(index, num_thoughts=num_thoughts, num_sweeps=plan.num_sweeps)
        return share > 0.0

    def num_passes(self, num_jacobi_iterations: float) -> float:
        """Return how often a training forward goes through the layers."""
        return mean_over_sweeps(lambda sweeps: self.plan(sweeps).num_passes, num_jacobi_iterations)

    def training_rows_per_token(self, num_jacobi_iterations: float) -> float:
        """Return the rows per token over all passes of a training forward (definitions 5)."""
        return mean_over_sweeps(lambda sweeps: self.plan(sweeps).rows_per_token, num_jacobi_iterations)

    def gradient_rows_per_token(self, num_jacobi_iterations: float) -> float:
        """Return the rows per token over the passes of a training step that run backward too."""
        return mean_over_sweeps(
            lambda sweeps: self.plan(sweeps).gradient_rows_per_token, num_jacobi_iterations
        )

    def inference_rows_per_token(self, mean_steps: float) -> float:
        """Return the rows per token of cached decoding; only methods that halt follow the steps taken."""
        return 1 + (mean_steps if self.halts else self.num_latent_thoughts)

    def effective_depth(self, mean_steps: float | None = None) -> float:
        """Return the layers on the way to one prediction of a decoder; None means all K steps."""
        if self.facts.has_one_pass:
            # Pause tokens go through the layers side by side with their token.
            return self.shape.num_layers
        steps = self.num_latent_thoughts if mean_steps is None else mean_steps
        return self.shape.num_layers * self.inference_rows_per_token(steps)

    def parameters(self) -> ParameterCount:
        """Count the unique parameters; weights shared between passes count once."""
        shape, decider = self.shape, self.decider
        return ParameterCount(
            embedding=shape.vocabulary_weights,
            layers=shape.num_layers * shape.layer_parameters,
            final_norm=shape.norm_parameters,
            head=0 if shape.tied_embeddings else shape.vocabulary_weights,
            decider=decider.num_parameters(shape.hidden_size, self.built_for) if decider else 0,
        )

    def training_flops(self, num_jacobi_iterations: float) -> TrainingFlops:
        """Account one training step per token.

        Args:
            num_jacobi_iterations: J, or its mean where it is drawn for each step.
        """
        whole = math.floor(num_jacobi_iterations)
        share = num_jacobi_iterations - whole
        flops = self._step_flops(self.plan(whole))
        return flops if share == 0 else flops.towards(self._step_flops(self.plan(whole + 1)), share)

    def training_per_token(self, num_jacobi_iterations: float) -> float:
        """Return the model operations per token of a training step, recomputation left out."""
        return self.training_flops(num_jacobi_iterations).model

    def inference_flops(
        self,
        mean_steps: float,
        *,
        shares: Sequence[float] | None = None,
        tokens_before: float | None = None,
    ) -> InferenceFlops:
        """Account cached decoding, in which pruned slots leave no keys and every step starts from a mixture.

        Args:
            mean_steps: extra steps that a token takes on average.
            shares: of tokens that take 0..K steps, with that mean. They decide how many gates are read, which
                is after every iteration but the K-th, and how many keys a step sees; None assumes that all
                tokens take the steps of the mean, as nearly as they can.
            tokens_before: tokens that a token can see before it; None is the mean over a whole sequence.
        """
        rows, before = self.inference_rows_per_token(mean_steps), tokens_before
        before = (self.shape.seq_length - 1) / 2 if before is None else before
        pairs = self._decoded_pairs(rows, before, self._reached(mean_steps, shares))
        channels = self._weight_channels * self.shape.num_attention_heads
        return InferenceFlops(
            layers=2 * rows * self.shape.num_layers * self.shape.layer_weights,
            attention=self._product_flops(pairs * self.shape.query_size),
            head=(1 + self._share_of_judged_predictions(rows)) * self.flops_of_head,
            decider=self._decisions_per_token(rows, shares) * self.flops_of_decider,
            mixture=(rows - 1) * self.flops_of_mixture,
            weight_columns=self._product_flops(pairs * channels) if self.facts.weighs_slots else 0.0,
        )

    def inference_per_token(self, mean_steps: float, *, shares: Sequence[float] | None = None) -> float:
        """Return the model operations per token of decoding a whole sequence."""
        return self.inference_flops(mean_steps, shares=shares).model

    def saved_fraction(self, mean_steps: float, *, shares: Sequence[float] | None = None) -> float:
        """Return the share of inference operations that halting saves against taking all K steps."""
        spent = self.inference_per_token(mean_steps, shares=shares)
        return 1 - spent / self.inference_per_token(self.num_latent_thoughts)

    def _step_flops(self, plan: PassPlan) -> TrainingFlops:
        step = 1 + BACKWARD_PER_FORWARD
        # Runs through each pass, in units of its forward; attention that is computed again runs once more.
        steps = [step if plan.has_gradient(index) else 1 for index in range(plan.num_passes)]
        again = self.recompute in RECOMPUTING_LAYERS
        attention_steps = [runs + (runs == step and again) for runs in steps]
        passes = {"build_up": 0.0, "sweep": 0.0, "final": 0.0}
        decisions = mixtures = 0
        for index, runs in enumerate(steps):
            passes[plan.phase(index)] += runs * self._pass_flops(index, plan)
            decisions += runs * self.decides_after(index, plan)
            mixtures += runs * plan.rows_handed(index)
        return TrainingFlops(
            build_up=passes["build_up"],
            sweeps=passes["sweep"],
            final=passes["final"],
            head=step * (1 + self.supervises_steps * (self.num_latent_thoughts + 1)) * self.flops_of_head,
            predictions=self._num_predictions(plan) * self.flops_of_head,
            decider=decisions * self.flops_of_decider,
            mixture=mixtures * self.flops_of_mixture,
            recompute=self._recompute_flops(plan) + self._logits_flops(plan),
            weight_columns=self._product_flops(self._weighted_channels(plan, attention_steps)),
            masked=self._product_flops(self._masked_channels(plan, attention_steps)),
        )

    def product_flops(self, index: int, plan: PassPlan) -> float:
        """Return the operations per token of one forward through all layers, attention left out."""
        weights = self._rows(index, plan) * self.shape.num_layers * self.shape.layer_weights
        return 2 * (weights - self._spared_weights(index, plan))

    def attention_flops(self, index: int, plan: PassPlan) -> float:
        """Return the operations per token of attention in one forward, without the columns of weights."""
        pairs = self._key_sets(index) * self._visible_pairs(index, plan)
        return self._product_flops(pairs * self.shape.query_size)

    def column_flops(self, index: int, plan: PassPlan) -> float:
        """Return the operations per token of one forward that the columns of ``log w`` add to attention."""
        return self._product_flops(self._weights_of_pass(index, plan, self._visible_pairs))

    def _pass_flops(self, index: int, plan: PassPlan) -> float:
        """Operations per token of one trip through all layers."""
        return self.product_flops(index, plan) + self.attention_flops(index, plan)

    def _spared_weights(self, index: int, plan: PassPlan) -> float:
        """Elements of weights that rows of a pass are not multiplied with, per token.

        Of slots that nobody reads the last layer computes keys and values only; slot 0 of the first layer,
        which has the same embedding in all passes, is computed once but for attention.
        """
        if self.share_of_thoughts is not None:
            return 0
        shape, read = self.shape, self.facts.slots_read(index, plan)
        spared = (plan.slots[index] - len(read)) * (shape.layer_weights - shape.heads_weights)
        if self.facts.repeats_embeddings and index not in (0, plan.first_with_gradient):
            # Where the first layer is the last one too, nobody may read its slot 0.
            has_mlp = shape.has_parallel_residual and (shape.num_layers > 1 or 0 in read)
            spared += shape.heads_weights + has_mlp * shape.mlp_weights
        return spared

    def _key_sets(self, index: int) -> int:
        """How many passes' keys pass `index` attends to."""
        return index + 1 if self.facts.sees_earlier_steps else 1

    def _num_predictions(self, plan: PassPlan) -> int:
        """How often the penalty asks the head, for a token."""
        if self.facts.predicts_each_step:
            return plan.num_passes - 1
        # As many times as there are thoughts, after which the sweeps begin.
        return plan.first_sweep if self.scores_fewer_steps else 0

    def _product_flops(self, pair_channels: float) -> float:
        """Scores and weighted values of all layers, for so many channels of pairs of rows per token."""
        return 2 * 2 * self.shape.num_layers * pair_channels

    def _rows(self, index: int, plan: PassPlan) -> float:
        """Rows per token that a pass runs."""
        share = 1.0 if self.share_of_thoughts is None else self.share_of_thoughts
        return 1 + (plan.slots[index] - 1) * share

    def _visible_pairs(self, index: int, plan: PassPlan) -> float:
        """Pairs of rows per token of a causal pass, mean over the layers: row i sees rows 0..i."""
        slots, length = self._rows(index, plan), self.shape.seq_length
        return self._mean_over_layers(
            slots * (slots * length + 1) / 2, slots * (length + 1) / 2, index=index, plan=plan
        )

    def _masked_pairs(self, index: int, plan: PassPlan) -> float:
        """Pairs of rows per token of a pass that the causal mask removes, mean over the layers."""
        slots, length = self._rows(index, plan), self.shape.seq_length
        pairs = self._mean_over_layers(slots * slots * length, slots * length, index=index, plan=plan)
        return pairs - self._visible_pairs(index, plan)

    def _mean_over_layers(self, pairs: float, of_last_slot: float, *, index: int, plan: PassPlan) -> float:
        """Return the mean where the last layer may have queries of each token's last slot alone."""
        slots = plan.slots[index]
        if slots == 1 or self.facts.slots_read(index, plan) != range(slots - 1, slots):
            return pairs
        return pairs - (pairs - of_last_slot) / self.shape.num_layers

    @property
    def _weight_channels(self) -> int:
        """Further channels of a weighted key and its value."""
        if self.facts.sees_earlier_steps:
            # In training one column hides the keys of absent tokens, and has two values.
            return self.shape.weighted_head_size("fp32") - self.shape.kv_channels
        if not self.facts.weighs_slots:
            return 0
        return self.shape.weighted_head_size(self.precision) - self.shape.kv_channels

    def _weighted_channels(self, plan: PassPlan, runs: Sequence[int]) -> float:
        """Further channels of visible pairs per token, over all passes: only the first one has no weights.

        Args:
            plan: the passes.
            runs: how often each is run, backward in units of forward.
        """
        return self._weights_of_later_passes(plan, runs, self._visible_pairs)

    def _masked_channels(self, plan: PassPlan, runs: Sequence[int]) -> float:
        """Channels of masked pairs per token, over all passes."""
        pairs = sum(
            number * self._key_sets(index) * self._masked_pairs(index, plan)
            for index, number in enumerate(runs)
        )
        return pairs * self.shape.query_size + self._weights_of_later_passes(plan, runs, self._masked_pairs)

    def _weights_of_later_passes(
        self, plan: PassPlan, runs: Sequence[int], pairs_of: Callable[[int, PassPlan], float]
    ) -> float:
        return sum(number * self._weights_of_pass(index, plan, pairs_of) for index, number in enumerate(runs))

    def _weights_of_pass(
        self, index: int, plan: PassPlan, pairs_of: Callable[[int, PassPlan], float]
    ) -> float:
        # All ran step 0, so that its keys need no weights.
        num_sets = index if self.facts.sees_earlier_steps else min(index, 1)
        return num_sets * pairs_of(index, plan) * self._weight_channels * self.shape.num_attention_heads

    @property
    def flops_of_head(self) -> float:
        """Operations for one prediction."""
        return 2 * self.shape.vocabulary_weights

    @property
    def flops_of_mixture(self) -> float:
        """Operations for one mixture of embeddings: the distribution, then the product.

        A mixture of the largest logits is computed by masking the others, so it costs no less.
        """
        return 2 * self.flops_of_head if self.facts.mixes(self.mixture) else 0

    def logits_made_again(self, phase: Phase) -> int:
        """Return how often training computes the logits of a mixture beside :attr:`flops_of_mixture`.

        In parts, backward needs them again; so does forward once it knows the least of the largest logits.
        """
        if not self.fuses or not self.facts.mixes(self.mixture):
            return 0
        return 1 if phase == "backward" else int(self.mixture == Mixture.TOP_K)

    @property
    def flops_of_decider(self) -> float:
        """Operations for one token through the router, or one gate."""
        decider = self.decider
        return 2 * decider.num_weights(self.shape.hidden_size, self.built_for) if decider else 0

    def _decisions_per_token(self, rows: float, shares: Sequence[float] | None) -> float:
        """How often a decoder asks the router or a gate, for a token that takes so many rows."""
        decider = self.decider
        if decider is None or not decider.asks_again:
            return 1
        return min(rows, self.num_latent_thoughts) if shares is None else rows - shares[-1]

    def _reached(self, mean_steps: float, shares: Sequence[float] | None) -> list[float]:
        """Return the shares of tokens that take at least 0..K steps."""
        steps = range(self.num_latent_thoughts + 1)
        if shares is not None and self.halts:
            return [sum(shares[step:]) for step in steps]
        mean_steps = self.inference_rows_per_token(mean_steps) - 1
        return [1.0, *(min(max(mean_steps - step, 0.0), 1.0) for step in steps[:-1])]

    def _decoded_pairs(self, rows: float, before: float, reached: Sequence[float]) -> float:
        """Pairs of rows per token of decoding, for a token with so many tokens before it.

        A slot sees all kept rows, an iteration its own version of every earlier token, or where it sees
        earlier steps the rows of all steps up to its own.
        """
        if self.facts.sees_earlier_steps:
            kept = list(accumulate(reached))
            return sum(
                share * (before * seen + step + 1)
                for step, (share, seen) in enumerate(zip(reached, kept, strict=True))
            )
        if self.facts.has_slots:
            return rows * (rows * before + (rows + 1) / 2)
        return rows * (before + 1)

    def _share_of_judged_predictions(self, rows: float) -> float:
        """How many predictions of step 0 a decoder makes for a token only to see whether it should go on.

        A token that stops there has no other, and one that continues takes all K steps.
        """
        if self.signal is None or not self.signal.reads_head:
            return 0
        return (rows - 1) / max(self.num_latent_thoughts, 1)

    def _recompute_flops(self, plan: PassPlan) -> float:
        if self.recompute not in RECOMPUTING_LAYERS:
            return 0
        return sum(
            self._pass_flops(index, plan) for index in range(plan.num_passes) if plan.has_gradient(index)
        )

    def _logits_flops(self, plan: PassPlan) -> float:
        """Operations per token of logits that training computes again for mixtures."""
        forward, backward = self.logits_made_again("forward"), self.logits_made_again("backward")
        number = sum(
            plan.rows_handed(index) * (forward + plan.has_gradient(index) * backward)
            for index in range(plan.num_passes)
        )
        return number * self.flops_of_head
