"""What a step does beside products and attention: values read and written, and launches.

They say what the program does, not how fast: that is in :mod:`pipeline.cost.roofline`. There are three:

* MEASURED is the program whose steps were measured on a GPU (docs/results.md), an earlier one without fused
  functions: bytes from a rehearsal, every operand of every operation once, and launches from profiles of two
  steps, divided up as in the rehearsal. The rates of the roofline are those with which it takes as long.
* UNFUSED and FUSED are the program of today, by `training.fused`, from rehearsals alone. A fused function
  counts as one kernel; what keys of earlier passes cost is that of the measured program. No step of theirs
  has been measured on a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pipeline.cost.flops import Phase
from pipeline.cost.rank_sizes import RankSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Work of one layer in one pass, in one phase.

    Attributes:
        hidden: values moved per row and channel of the hidden size, where sequence parallelism divides them.
        heads: values moved per row and channel of queries, keys and values together.
        inner: values moved per row and channel of the MLP.
        launches: of kernels, products and attention included.
    """

    hidden: float = 0.0
    heads: float = 0.0
    inner: float = 0.0
    launches: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """Work of one layer in one pass, by phase."""

    forward: Counts
    backward: Counts
    again: Counts = field(default_factory=Counts)

    def of(self, phase: Phase) -> Counts:
        """Return one phase."""
        counts: Counts = getattr(self, phase)
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramWork:
    """Work of a program.

    Attributes:
        llama, gpt_neox: layers of the backbones.
        weighted: in addition, where keys carry log w.
        kept: in addition, where keys of halted tokens are those of an earlier pass.
        steps: in addition, for each earlier pass whose keys are attended to.
        loss_forward, loss_backward: bytes per piece of the vocabulary and prediction, product left out.
        mixture_forward, mixture_backward: the same of a mixture of embeddings.
        mixture_launches_forward, mixture_launches_backward: for each part of the rows that are mixed; 0 where
            they are mixed at once.
        pass_launches: of kernels before and after the layers of a pass, in each direction.
        update_launches: per weight, in an update.
        parameter_bytes: per parameter of a rank, in an update.
        owned_bytes: per parameter whose state the rank holds.
    """

    llama: LayerWork
    gpt_neox: LayerWork
    weighted: LayerWork
    kept: LayerWork
    steps: LayerWork
    loss_forward: float
    loss_backward: float
    mixture_forward: float
    mixture_backward: float
    mixture_launches_forward: float
    mixture_launches_backward: float
    pass_launches: float
    update_launches: float
    parameter_bytes: float
    owned_bytes: float

    def loss(self, phase: Phase) -> float:
        """Return the bytes of a loss in one direction."""
        return self.loss_forward if phase == "forward" else self.loss_backward

    def mixture(self, phase: Phase) -> float:
        """Return the bytes of a mixture in one direction."""
        return self.mixture_forward if phase == "forward" else self.mixture_backward

    def mixture_launches(self, phase: Phase) -> float:
        """Return the launches for a part of the rows that are mixed, in one direction."""
        return self.mixture_launches_forward if phase == "forward" else self.mixture_launches_backward

    def layer_launches(self, sizes: RankSizes, index: int, phase: Phase) -> float:
        """Return the launches of one layer in pass `index`."""
        return sum(number * work.of(phase).launches for number, work in self._layer(sizes, index))

    def layer_bytes(self, sizes: RankSizes, index: int, phase: Phase) -> float:
        """Return the bytes that one layer of a rank moves in pass `index`."""
        shape = sizes.shape
        hidden = shape.hidden_size / (sizes.tensor if sizes.shards_tokens else 1)
        heads = (shape.query_size + shape.key_value_size) / sizes.tensor
        inner = shape.ffn_hidden_size / sizes.tensor
        channels = 0.0
        for number, work in self._layer(sizes, index):
            counts = work.of(phase)
            channels += number * (counts.hidden * hidden + counts.heads * heads + counts.inner * inner)
        return sizes.tokens * sizes.plan.slots[index] * sizes.value_bytes * channels

    def _layer(self, sizes: RankSizes, index: int) -> Iterator[tuple[int, LayerWork]]:
        """Yield what a layer consists of in pass `index`, and how often."""
        yield 1, self.gpt_neox if sizes.shape.architecture == "gpt_neox" else self.llama
        if weighs_keys(sizes, index):
            yield 1, self.weighted
        if sizes.facts.sees_earlier_steps:
            yield index, self.steps
        elif sizes.facts.halts_in_training:
            yield 1, self.kept


def weighs_keys(sizes: RankSizes, index: int) -> bool:
    """Return whether keys have weights in most steps of a run; those of a blended start are few."""
    return sizes.facts.weighs_slots and index > 0


MEASURED = ProgramWork(
    llama=LayerWork(
        forward=Counts(hidden=10.1, heads=9.1, inner=7, launches=38),
        backward=Counts(hidden=12.1, heads=10.8, inner=13, launches=47),
        again=Counts(hidden=4, inner=3, launches=3),
    ),
    gpt_neox=LayerWork(
        forward=Counts(hidden=15.2, heads=5.0, inner=4, launches=40),
        backward=Counts(hidden=15.0, heads=6.5, inner=4, launches=53),
        again=Counts(hidden=4, inner=2, launches=3),
    ),
    weighted=LayerWork(
        forward=Counts(heads=1.5, launches=12),
        backward=Counts(heads=0.8, launches=11),
        # Of these a third is attended values, which are read and written.
        again=Counts(heads=0.7, launches=1),
    ),
    kept=LayerWork(forward=Counts(heads=2.3, launches=3), backward=Counts(heads=3.6, launches=9)),
    # A copy of the earlier keys and values, and their gradients; not among the measured methods.
    steps=LayerWork(forward=Counts(heads=1.3, launches=2), backward=Counts(heads=2.0, launches=4)),
    loss_forward=50,
    loss_backward=30,
    mixture_forward=41,
    mixture_backward=42,
    mixture_launches_forward=0,
    mixture_launches_backward=0,
    pass_launches=30,
    update_launches=4.1,
    parameter_bytes=12,
    owned_bytes=60,
)

UNFUSED = replace(
    MEASURED,
    llama=LayerWork(
        forward=Counts(hidden=8, heads=5, inner=5, launches=20),
        backward=Counts(hidden=12, heads=5, inner=13, launches=36),
        again=MEASURED.llama.again,
    ),
    gpt_neox=LayerWork(
        forward=Counts(hidden=6, heads=3.7, inner=2, launches=22),
        backward=Counts(hidden=13, heads=4.7, inner=4, launches=45),
        again=MEASURED.gpt_neox.again,
    ),
    weighted=LayerWork(
        forward=Counts(heads=0.9, launches=5),
        backward=Counts(heads=1.1, launches=5),
        again=MEASURED.weighted.again,
    ),
    mixture_forward=40,
    mixture_backward=36,
)

FUSED = replace(
    MEASURED,
    llama=LayerWork(
        forward=Counts(hidden=8, heads=2, inner=3, launches=11),
        backward=Counts(hidden=12, heads=2, inner=5, launches=19),
        again=MEASURED.llama.again,
    ),
    gpt_neox=LayerWork(
        forward=Counts(hidden=6, heads=2, inner=2, launches=12),
        backward=Counts(hidden=15, heads=3, inner=4, launches=31),
        again=MEASURED.gpt_neox.again,
    ),
    weighted=LayerWork(
        forward=Counts(heads=0.8, launches=1),
        backward=Counts(heads=1.2, launches=3),
        again=MEASURED.weighted.again,
    ),
    loss_forward=2,
    loss_backward=4,
    mixture_forward=4,
    mixture_backward=8,
    mixture_launches_forward=3,
    mixture_launches_backward=6,
)


def program_of(sizes: RankSizes) -> ProgramWork:
    """Return the work of the program of today with the settings of a run."""
    return FUSED if sizes.fuses else UNFUSED
