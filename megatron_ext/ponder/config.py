"""The pondering methods, the facts of each, and the settings of one: plain values, no torch.

Everything that depends on which method a model has is read from :data:`FACTS`: costs, memory, rules of the
configuration, names and shapes of weights, charts, model cards. What a method computes is in
:mod:`megatron_ext.methods`. docs/adding-a-method.md shows how another one is added.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from megatron_ext.ponder.passes import (
    PassPlan,
    PlanBuilder,
    iteration_plan,
    jacobi_plan,
    pause_plan,
    single_pass_plan,
)
from megatron_ext.ponder.renewal import Renewal


class Method(StrEnum):
    """The pondering methods, by the names used in configs and checkpoints."""

    VANILLA = "vanilla"
    LOOP = "loop"
    PAUSE = "pause"
    PONDERLM = "ponderlm"
    PONDERLM2 = "ponderlm2"
    ADAPONDERLM = "adaponderlm"
    PONDERLM3 = "ponderlm3"
    ADAPTIVE_LATENT_COT = "adaptive_latent_cot"

    @property
    def facts(self) -> "MethodFacts":
        """The facts of this method."""
        return FACTS[self]

    @property
    def has_sweeps(self) -> bool:
        """Whether latent thoughts are refined in Jacobi sweeps (definitions 2.3)."""
        return self.facts.has_sweeps

    @property
    def has_slots(self) -> bool:
        """Whether extra steps are further rows of a token, rather than further passes over its one row."""
        return self.facts.has_slots

    @property
    def halts(self) -> bool:
        """Whether every token decides how many steps it takes."""
        return self.facts.halts

    @property
    def has_one_pass(self) -> bool:
        """Whether a forward goes through the layers once, whatever K is."""
        return self.facts.has_one_pass


class Mixture(StrEnum):
    """What a step feeds back: the hidden state, or the embeddings it predicts (definitions 2.2, 3.1)."""

    HIDDEN = "hidden"
    SOFTMAX = "softmax"
    TOP_K = "top_k"


class Residual(StrEnum):
    """What PonderLM adds a step's result to: the running input, or the embedding (definitions 3.1)."""

    ACCUMULATE = "accumulate"
    FROM_EMBEDDING = "from_embedding"


class Penalty(StrEnum):
    """What the halting penalty of PonderLM-3 measures (definitions 2.5, 2.8)."""

    EXPECTED_STEPS = "expected_steps"
    BOTTOM_K = "bottom_k"
    ACCURACY_BOTTOM = "accuracy_bottom"
    DELTA_LOSS = "delta_loss"
    CE_LOSS = "ce_loss"

    @property
    def is_adaptive(self) -> bool:
        """Whether predictions from fewer steps decide how many tokens each step is to lose."""
        return self in (Penalty.ACCURACY_BOTTOM, Penalty.DELTA_LOSS, Penalty.CE_LOSS)


class Form(StrEnum):
    """A set of defaults for PonderLM-3: this project's, or what its authors' research code computes."""

    MEGAPONDER = "megaponder"
    AUTHORS = "authors"


class RouterKind(StrEnum):
    """The network that gives a token its distribution over steps: with a hidden layer, or one linear map."""

    MLP = "mlp"
    LINEAR = "linear"


class RouterStart(StrEnum):
    """Initial weights of the router's last layer (definitions 2.7, 2.8)."""

    LAST_STEP = "last_step"
    RANDOM = "random"


class TrainingMask(StrEnum):
    """What training does to the keys of slots below tau: weighs them, or hides them."""

    SOFT = "soft"
    HARD = "hard"


class ReadoutFrom(StrEnum):
    """The pass whose router decides how the final pass is read."""

    FINAL = "final"
    LAST_SWEEP = "last_sweep"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterForm:
    """How the router of PonderLM-3 is built, and what training does with it (definitions 2.5, 2.8).

    Attributes:
        router: the network.
        router_start: its initial weights.
        mask_in_training: what becomes of keys below tau.
        attention_scale_extra: attention logits are divided by the root of the head size plus this, in every
            pass and in decoding.
        pre_pass, router_damping, undamped_sweeps: see :class:`megatron_ext.ponder.renewal.Renewal`.
        readout_from: whose router the readout and the penalty use.
    """

    router: RouterKind = RouterKind.MLP
    router_start: RouterStart = RouterStart.LAST_STEP
    mask_in_training: TrainingMask = TrainingMask.SOFT
    attention_scale_extra: int = 0
    pre_pass: bool = False
    router_damping: float = 1.0
    undamped_sweeps: int = 1
    readout_from: ReadoutFrom = ReadoutFrom.FINAL

    @property
    def hides_keys(self) -> bool:
        """Whether training hides the keys of slots below tau, as decoding does."""
        return self.mask_in_training is TrainingMask.HARD

    @property
    def renewal(self) -> Renewal:
        """When a training forward asks the router."""
        return Renewal(
            pre_pass=self.pre_pass,
            damping=self.router_damping,
            undamped_sweeps=self.undamped_sweeps,
            reads_last_sweep=self.readout_from is ReadoutFrom.LAST_SWEEP,
        )


class Reading(StrEnum):
    """What PonderLM-3 reads of a token's steps (definitions 2.10)."""

    MIXTURE = "mixture"
    DETACHED_MIXTURE = "detached_mixture"
    LAST_STEP = "last_step"


@dataclass(frozen=True, slots=True, kw_only=True)
class PonderConfig:
    """Settings of a pondering method; a method ignores what it has no use for.

    Attributes:
        method: which method.
        num_latent_thoughts: K, extra steps per token, at least 0.
        max_jacobi_iterations: the largest J that will ever be asked for; sizes the statistics.
        scale_embeds: multiply embeddings by the method's factor c.
        mixture: what a step feeds back.
        mixture_top_k: embeddings in a mixture of kind top_k.
        softmax_temperature: divides the logits of mixtures, and nothing else.
        residual: what PonderLM adds a step's result to.
        multiply_embedding: PonderLM starts from K times the embedding.
        pause_token_id: row of the embedding that pause tokens take, or None where the method has none.
        step_input_scale: factor on the hidden state that is the input of the next step (adaptive_latent_cot).
        pruning_threshold: tau, the tail mass, gate value or reach below which a token halts.
        penalty: how the steps taken are penalised (ponderlm3).
        bottom_k_fraction: q of the bottom-k penalty, in [0, 1].
        bottom_k_floor: whether the bottom-k penalty counts gates that are closed as if they were at tau
            (adaponderlm).
        form: of the router (ponderlm3).
        reading: what is read of a token's steps (ponderlm3).
        step_loss_weight: weight of the mean loss of reading each step alone (ponderlm3).
        entropy_floor: nats of s below which a token is penalised (ponderlm3).
        entropy_floor_weight: weight of that penalty.
        penalty_exponent: beta, power of the label's probability in the penalty (adaptive_latent_cot).
    """

    method: Method
    num_latent_thoughts: int = 0
    max_jacobi_iterations: int = 0
    scale_embeds: bool = True
    mixture: Mixture = Mixture.HIDDEN
    mixture_top_k: int = 100
    softmax_temperature: float = 1.0
    residual: Residual = Residual.ACCUMULATE
    multiply_embedding: bool = False
    pause_token_id: int | None = None
    step_input_scale: float = 1.0
    pruning_threshold: float = 1e-4
    penalty: Penalty = Penalty.EXPECTED_STEPS
    bottom_k_fraction: float = 0.25
    bottom_k_floor: bool = True
    form: RouterForm = field(default_factory=RouterForm)
    reading: Reading = Reading.MIXTURE
    step_loss_weight: float = 0.0
    entropy_floor: float = 0.0
    entropy_floor_weight: float = 1.0
    penalty_exponent: float = 1.0

    @property
    def num_slots(self) -> int:
        """K + 1: the token itself and its latent thoughts, or iterations."""
        return self.num_latent_thoughts + 1

    @property
    def decider(self) -> "Decider | None":
        """The network by which tokens halt, or None."""
        return self.method.facts.decider_of(self.form)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider:
    """The small network by which a method decides how many steps a token takes.

    Linear(H, inner), exact GELU, Linear(inner, outputs), or Linear(H, outputs) alone; all with biases.

    Attributes:
        name: of the attribute that holds it, and of its weights.
        inner: H -> units of the hidden layer; None where there is none.
        outputs: K -> outputs.
        asks_again: whether a token is asked after each of its iterations but the K-th, whether it continues;
            otherwise once, and in a training forward again after every pass.
        per_iteration: whether each of the K iterations has a network of its own.
        start: how its weights are initialized, for people.
    """

    name: str
    inner: Callable[[int], int] | None
    outputs: Callable[[int], int]
    asks_again: bool
    per_iteration: bool
    start: str

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the linear layers below the prefix of a network, each with its dot."""
        return ("",) if self.inner is None else ("0.", "2.")

    def prefixes(self, num_latent_thoughts: int) -> tuple[str, ...]:
        """Return the names of the networks of a model with K extra steps."""
        if self.per_iteration:
            return tuple(f"ponder.{self.name}.{index}" for index in range(num_latent_thoughts))
        return (f"ponder.{self.name}",)

    def shapes(self, hidden_size: int, num_latent_thoughts: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the parameters of one network, by their names below its prefix."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (inputs, outputs) in zip(
            self.layers, self._products(hidden_size, num_latent_thoughts), strict=True
        ):
            shapes |= {f"{name}weight": (outputs, inputs), f"{name}bias": (outputs,)}
        return shapes

    def num_hidden(self, hidden_size: int) -> int:
        """Return the units of the hidden layer; 0 where there is none."""
        return 0 if self.inner is None else self.inner(hidden_size)

    def num_weights(self, hidden_size: int, num_latent_thoughts: int) -> int:
        """Return the elements of the matrices of one network."""
        return sum(inputs * outputs for inputs, outputs in self._products(hidden_size, num_latent_thoughts))

    def num_parameters(self, hidden_size: int, num_latent_thoughts: int) -> int:
        """Return the parameters of all networks of a model, biases included."""
        biases = sum(outputs for _, outputs in self._products(hidden_size, num_latent_thoughts))
        one = self.num_weights(hidden_size, num_latent_thoughts) + biases
        return len(self.prefixes(num_latent_thoughts)) * one

    def is_read_after(self, index: int, plan: PassPlan) -> bool:
        """Whether a forward in which every pass decides runs a network on every token after pass `index`."""
        return not (self.asks_again and plan.is_final(index))

    def _products(self, hidden_size: int, num_latent_thoughts: int) -> tuple[tuple[int, int], ...]:
        """Return (inputs, outputs) of the linear layers."""
        outputs = self.outputs(num_latent_thoughts)
        if self.inner is None:
            return ((hidden_size, outputs),)
        return ((hidden_size, self.inner(hidden_size)), (self.inner(hidden_size), outputs))


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodFacts:
    """What other parts of the program have to know of a method.

    Attributes:
        title: the name in papers and text.
        source: where it was published, or None.
        step_name: what one of the K extra steps is, in the plural.
        description: one sentence for model cards, with ``{steps}`` for K and ``{more}`` for K + 1.
        plan: (K, J) -> the passes of a training forward.
        has_sweeps: J matters: latent thoughts are refined in Jacobi sweeps (definitions 2.3).
        has_slots: extra steps are further rows of a token, rather than further passes over its one row.
        has_wide_embeddings: embeddings are scaled by sqrt(2.5 H) where hidden states are fed back; by sqrt(H)
            otherwise.
        norms_each_pass: each pass ends with the final norm; otherwise only the last one does, and the states
            that a pass ends with are the next one's input as they are.
        decider: the network by which tokens halt; None: all take K steps.
        weighs_slots: the decider gives each slot a weight: of its key, as ``log w``, and in what is read.
        freezes_halted: a halted token keeps hidden state, keys and values of its last iteration, in the
            training forward too, which therefore depends on tau.
        sees_earlier_steps: an iteration attends to the keys of all iterations up to its own, not to a token's
            latest ones alone. A token that has halted leaves no keys in later ones, in the training forward
            too, which therefore depends on tau.
        predicts_each_step: the penalty asks the head what each iteration predicts.
        ramps_fraction: `ponder.penalty_ramp` raises the fraction q of bottom-k, under the whole weight,
            rather than the weight.
        continues: the methods whose trained weights a run may start from, beside its own.
        settings: those of the section `ponder` that mean something, `method` not counted.
        defaults: of these and other settings, where they are not the usual ones.
        forms: the same for each form that a method has.
    """

    title: str
    source: str | None = None
    step_name: str = "iterations"
    description: str = ""
    plan: PlanBuilder
    has_sweeps: bool = False
    has_slots: bool = False
    has_wide_embeddings: bool = False
    norms_each_pass: bool = True
    decider: Decider | None = None
    weighs_slots: bool = False
    freezes_halted: bool = False
    sees_earlier_steps: bool = False
    predicts_each_step: bool = False
    ramps_fraction: bool = False
    continues: tuple[Method, ...] = (Method.VANILLA,)
    settings: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    forms: Mapping[Form, Mapping[str, Any]] = field(default_factory=dict)

    def decider_of(self, form: RouterForm) -> Decider | None:
        """Return the network by which tokens halt under a form of the router; None: all take K steps."""
        if self.decider is None or not self.weighs_slots:
            return self.decider
        inner = None if form.router is RouterKind.LINEAR else self.decider.inner
        return replace(self.decider, inner=inner, start=_ROUTER_STARTS[form.router, form.router_start])

    @property
    def ponders(self) -> bool:
        """Whether tokens can take extra steps at all."""
        return "num_latent_thoughts" in self.settings

    @property
    def halts(self) -> bool:
        """Whether every token decides how many steps it takes."""
        return self.decider is not None

    @property
    def halts_in_training(self) -> bool:
        """Whether tokens halt in the training forward as in decoding."""
        return self.freezes_halted or self.sees_earlier_steps

    @property
    def has_one_pass(self) -> bool:
        """Whether a forward goes through the layers once, whatever K is."""
        return self.plan(1, 0).num_passes == 1

    @property
    def iterates(self) -> bool:
        """Whether a token's row runs again in its place, with keys and values of its own each time."""
        return not self.has_one_pass and not self.has_slots

    @property
    def has_pause_tokens(self) -> bool:
        """Whether the embedding needs a row for pause tokens."""
        return "pause_token_id" in self.settings

    @property
    def can_take_more_steps(self) -> bool:
        """Whether a trained model can take more steps than K: no weight belongs to one of them."""
        if not self.ponders:
            return False
        if self.decider is None:
            return True
        of_one, of_two = ((self.decider.prefixes(k), self.decider.shapes(8, k)) for k in (1, 2))
        return of_one == of_two

    @property
    def repeats_embeddings(self) -> bool:
        """Whether slot 0 of every pass enters the layers with the token's embedding."""
        return self.has_sweeps

    def slots_read(self, index: int, plan: PassPlan) -> range:
        """Return the slots of each token whose hidden states are read after pass `index`, consecutive ones.

        A pass before the final one is read for the thoughts that it hands on, and for slot 0, by which the
        router decides; the final one for its last slot, or where slots have weights for all.
        """
        num_slots = plan.slots[index]
        if not self.has_slots:
            return range(num_slots)
        if plan.is_final(index):
            return range(num_slots) if self.weighs_slots else range(num_slots - 1, num_slots)
        return range(plan.rows_handed(index))

    def mixes(self, mixture: Mixture) -> bool:
        """Whether a pass ends with a mixture of embeddings for the next one."""
        return "mixture" in self.settings and mixture is not Mixture.HIDDEN


_ROUTER_STARTS = {
    (RouterKind.MLP, RouterStart.LAST_STEP): "the router's first layer is random, its last layer puts 0.9 on "
    "step K for every token",
    (RouterKind.MLP, RouterStart.RANDOM): "both layers of the router are random, so that all steps are about "
    "equally likely",
    (RouterKind.LINEAR, RouterStart.LAST_STEP): "the router puts 0.9 on step K for every token",
    (RouterKind.LINEAR, RouterStart.RANDOM): "the router is random, so that all steps are about equally "
    "likely",
}

_STEPS = (
    "num_latent_thoughts",
    "random_latent_thoughts",
    "thoughts_schedule",
    "scale_embeds",
    "blended_start_iterations",
)
_SWEEPS = (
    "num_jacobi_iterations",
    "random_jacobi_iterations",
    "jacobi_schedule",
    "gradient_passes",
    "sweep_tolerance",
)
_MIXTURES = ("mixture", "mixture_top_k")
_ROUTER = (
    "form",
    "router",
    "router_start",
    "mask_in_training",
    "attention_scale_extra",
    "pre_pass",
    "router_damping",
    "undamped_sweeps",
    "readout_from",
    "penalty_start_weight",
)
_READING = ("skip_pruned_rows", "reading", "step_loss_weight", "entropy_floor", "entropy_floor_weight")
_HALTING = (
    "pruning_threshold",
    "penalty_weight",
    "penalty_ramp",
    "freeze_backbone_tokens",
    "held_decisions_iterations",
)

FACTS: Mapping[Method, MethodFacts] = {
    Method.VANILLA: MethodFacts(
        title="vanilla",
        plan=single_pass_plan,
        continues=(),
        settings=(),
        defaults={"num_latent_thoughts": 0, "scale_embeds": False},
    ),
    Method.LOOP: MethodFacts(
        title="looped language model",
        step_name="trips through the layers",
        description="every token runs {more} times through the same layers.",
        plan=iteration_plan,
        has_wide_embeddings=True,
        norms_each_pass=False,
        settings=_STEPS,
    ),
    Method.PAUSE: MethodFacts(
        title="pause tokens",
        step_name="pause tokens",
        description="every token is followed by {steps} pause tokens before the next one is predicted.",
        plan=pause_plan,
        has_slots=True,
        settings=(*_STEPS, "pause_token_id"),
    ),
    Method.PONDERLM: MethodFacts(
        title="PonderLM",
        source="arXiv 2505.20674",
        description="the embeddings that a token predicts are fed back into it, {steps} times.",
        plan=iteration_plan,
        settings=(*_STEPS, *_MIXTURES, "softmax_temperature", "residual", "multiply_embedding"),
        defaults={"mixture": Mixture.SOFTMAX},
    ),
    Method.PONDERLM2: MethodFacts(
        title="PonderLM-2",
        source="arXiv 2509.23184",
        step_name="latent thoughts",
        description="every token has {steps} latent thoughts before the next one is predicted.",
        plan=jacobi_plan,
        has_sweeps=True,
        has_slots=True,
        has_wide_embeddings=True,
        settings=(*_STEPS, *_SWEEPS, *_MIXTURES),
    ),
    Method.ADAPONDERLM: MethodFacts(
        title="AdaPonderLM",
        source="arXiv 2603.01914",
        description="the embeddings that a token predicts are fed back into it, at most {steps} times; gates "
        "decide token by token when it has enough.",
        plan=iteration_plan,
        decider=Decider(
            name="gates",
            inner=lambda hidden_size: 4 * hidden_size,
            outputs=lambda num_latent_thoughts: 1,
            asks_again=True,
            per_iteration=True,
            start="the first layer of every gate is random, its last layer opens it to 0.9 for every token",
        ),
        freezes_halted=True,
        ramps_fraction=True,
        continues=(Method.VANILLA, Method.PONDERLM),
        settings=(
            *_STEPS,
            *_MIXTURES,
            "softmax_temperature",
            *_HALTING,
            "bottom_k_fraction",
            "bottom_k_floor",
        ),
        defaults={
            "mixture": Mixture.SOFTMAX,
            "penalty": Penalty.BOTTOM_K,
            "penalty_weight": 0.1,
            "bottom_k_fraction": 0.1,
        },
    ),
    Method.PONDERLM3: MethodFacts(
        title="PonderLM-3",
        source="arXiv 2603.02023",
        step_name="latent thoughts",
        description="every token has up to {steps} latent thoughts before the next one is predicted; a "
        "router decides token by token how many it needs.",
        plan=jacobi_plan,
        has_sweeps=True,
        has_slots=True,
        has_wide_embeddings=True,
        decider=Decider(
            name="router",
            inner=lambda hidden_size: hidden_size // 4,
            outputs=lambda num_latent_thoughts: num_latent_thoughts + 1,
            asks_again=False,
            per_iteration=False,
            start=_ROUTER_STARTS[RouterKind.MLP, RouterStart.LAST_STEP],
        ),
        weighs_slots=True,
        continues=(Method.VANILLA, Method.PONDERLM2),
        forms={
            Form.AUTHORS: {
                "num_jacobi_iterations": 10,
                "router": RouterKind.LINEAR,
                "router_start": RouterStart.RANDOM,
                "mask_in_training": TrainingMask.HARD,
                "attention_scale_extra": 8,
                "pre_pass": True,
                "router_damping": 0.1,
                "readout_from": ReadoutFrom.LAST_SWEEP,
                "penalty": Penalty.ACCURACY_BOTTOM,
                "penalty_ramp": (1000, 4000),
            }
        },
        settings=(
            *_STEPS,
            *_SWEEPS,
            *_MIXTURES,
            *_ROUTER,
            "penalty",
            *_HALTING,
            "bottom_k_fraction",
            *_READING,
        ),
    ),
    Method.ADAPTIVE_LATENT_COT: MethodFacts(
        title="Adaptive Latent CoT",
        source="arXiv 2602.08220",
        step_name="latent steps",
        description="the last hidden state of every token is fed back into it, at most {steps} times; a "
        "router decides after each step whether the token continues.",
        plan=iteration_plan,
        has_wide_embeddings=True,
        decider=Decider(
            name="router",
            inner=None,
            outputs=lambda num_latent_thoughts: 1,
            asks_again=True,
            per_iteration=False,
            start="the router's weight is 0 and its bias lets every token continue with 0.9",
        ),
        sees_earlier_steps=True,
        predicts_each_step=True,
        continues=(Method.VANILLA, Method.PONDERLM2),
        settings=(*_STEPS, "step_input_scale", *_HALTING, "penalty_exponent"),
        defaults={"penalty_weight": 0.1, "pruning_threshold": 0.05},
    ),
}
