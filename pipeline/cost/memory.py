"""The memory of a rank at the fullest moment of a step, by part."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from pipeline.cost import muon
from pipeline.cost.activations import PassBytes, pass_bytes, readout_bytes
from pipeline.cost.parameters import RankParameters, StateBytes, rank_parameters, state_bytes
from pipeline.cost.rank_sizes import RankSizes

# A stage holds most before its backward passes have caught up; so many rounds of micro-batches reach that.
ROUNDS_IN_FLIGHT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a rank holds in addition to its state at one moment, in bytes.

    Attributes:
        name: of the moment.
        by_pass: what every pass has kept, over all micro-batches in flight.
        vocabulary: logits, or the distributions of a mixture.
        working: what the current layer needs, in recomputation or backward.
        gradient_sums: gradients of weights, which autograd adds up over the passes of one graph.
        communication: buffers of the tensor axis.
    """

    name: str
    by_pass: tuple[float, ...]
    vocabulary: float = 0.0
    working: float = 0.0
    gradient_sums: float = 0.0
    communication: float = 0.0

    @property
    def activations(self) -> float:
        """Bytes that all passes have kept."""
        return sum(self.by_pass)

    @property
    def total(self) -> float:
        """Bytes beside the state."""
        return self.activations + self.vocabulary + self.working + self.gradient_sums + self.communication


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """A rank of one pipeline stage.

    Attributes:
        stage: from 0.
        state: bytes that are always allocated.
        fullest: the moment with the most memory in addition.
    """

    stage: int
    state: StateBytes
    fullest: Moment

    @property
    def between_steps(self) -> float:
        """Bytes of tensors between two steps: the state, and the buffers of the tensor axis, which remain."""
        return self.state.total + self.fullest.communication

    @property
    def peak(self) -> float:
        """Bytes of tensors at the fullest moment."""
        return self.state.total + self.fullest.total


def rank_memories(sizes: RankSizes) -> tuple[RankMemory, ...]:
    """Return the memory of a rank of every pipeline stage."""
    return tuple(_rank_memory(sizes, stage) for stage in range(sizes.num_stages))


def _rank_memory(sizes: RankSizes, stage: int) -> RankMemory:
    parameters = rank_parameters(sizes, stage)
    passes = [pass_bytes(sizes, index, stage) for index in range(sizes.num_passes)]
    if sizes.num_stages == 1:
        moments = _moments_of_one_stage(sizes, parameters, passes)
    else:
        moments = _moments_of_a_stage(sizes, passes, stage)
    return RankMemory(
        stage=stage,
        state=muon.state_bytes(sizes, stage) if sizes.num_ns_steps else state_bytes(sizes, parameters),
        fullest=max(chain(moments, _update(sizes, stage)), key=lambda moment: moment.total),
    )


def _update(sizes: RankSizes, stage: int) -> Iterator[Moment]:
    """AdamW's update needs no memory of its own."""
    if sizes.num_ns_steps:
        working = muon.update_bytes(sizes, stage)
        yield Moment(name="update", by_pass=(0.0,), working=working, communication=_gathered(sizes))


def _moments_of_one_stage(
    sizes: RankSizes, parameters: RankParameters, passes: list[PassBytes]
) -> Iterator[Moment]:
    """One micro-batch at a time: all passes forward, then backward."""
    communication = _gathered(sizes)
    noted = tuple(each.kept + each.noted for each in passes)
    # Functions that compute a pass again refer to all that passes keep for each other.
    kept = noted if sizes.recomputes_layers else tuple(each.kept for each in passes)
    first = sizes.plan.first_with_gradient
    for index, each in enumerate(passes[:first]):
        yield Moment(
            name=f"forward of pass {index}",
            by_pass=(0.0,) * (index + 1),
            vocabulary=each.mixing,
            working=each.working,
            communication=communication,
        )
    yield Moment(name="loss", by_pass=noted, vocabulary=readout_bytes(sizes), communication=communication)
    if sizes.account.scores_fewer_steps:
        yield Moment(
            name="scores of fewer steps",
            by_pass=noted,
            vocabulary=readout_bytes(sizes),
            working=_scoring(sizes),
            communication=communication,
        )
    sums = _gradient_sums(sizes, parameters)
    for index, each in reversed(list(enumerate(passes))[first:]):
        sums_so_far = sums if index < len(passes) - 1 else 0.0
        yield Moment(
            name=f"mixing after pass {index}",
            by_pass=kept[: index + 1],
            vocabulary=each.mixing,
            working=each.waiting,
            gradient_sums=sums_so_far,
            communication=communication,
        )
        yield Moment(
            name=f"backward of pass {index}",
            by_pass=(*kept[:index], each.layers + each.keys),
            working=each.again + each.waiting + each.working,
            gradient_sums=sums_so_far,
            communication=communication,
        )
    # The embedding's gradient is as large as the embedding, and comes last.
    embedding = sizes.value_bytes * sizes.shape.vocabulary_weights / sizes.tensor
    yield Moment(
        name="embedding",
        by_pass=(0.0,),
        working=embedding + sizes.hidden_bytes,
        gradient_sums=sums,
        communication=communication,
    )


def _moments_of_a_stage(sizes: RankSizes, passes: list[PassBytes], stage: int) -> Iterator[Moment]:
    """Many micro-batches and passes in flight, in the order of Megatron's interleaved schedule."""
    # Loads Megatron, which a plan of one stage and the launchers do without.
    from pipeline.cost.schedule import backward_time, looping_timeline

    rounds = min(sizes.num_micro_batches, ROUNDS_IN_FLIGHT * sizes.num_stages)
    first = sizes.plan.first_with_gradient
    timeline = looping_timeline(
        sizes.num_stages,
        rounds,
        sizes.plan.slots,
        backward_per_forward=backward_time(sizes.recompute),
        first_with_gradient=first,
    )
    waiting: float = _handed_round(sizes, stage)
    final = sizes.num_passes - 1
    readout = readout_bytes(sizes) if stage == sizes.num_stages - 1 else 0.0
    communication = _gathered(sizes)
    held = [0.0] * sizes.num_passes
    for interval in timeline.stages[stage]:
        work = interval.work
        index, each = work.pass_index, passes[work.pass_index]
        if not work.is_backward:
            held[index] += each.kept + each.noted
        elif index != final:
            waiting -= each.waiting
        predicting = 0 if work.is_backward else each.predicting
        yield Moment(
            name=f"{'backward' if work.is_backward else 'forward'} of pass {index}",
            by_pass=tuple(held),
            vocabulary=readout if index == final else each.mixing + predicting,
            working=waiting + (0 if index >= first else each.working),
            communication=communication,
        )
        if work.is_backward:
            yield Moment(
                name=f"backward of pass {index}",
                by_pass=tuple(held),
                working=waiting + each.again + each.waiting + each.working,
                communication=communication,
            )
            held[index] -= each.kept
            # Until this micro-batch's backward goes on, after those of others.
            waiting += passes[index - 1].waiting if index > first else 0
        elif index == final:
            for earlier, noted in enumerate(passes):
                held[earlier] -= noted.noted


def _handed_round(sizes: RankSizes, stage: int) -> float:
    """What first and last stage hold of every micro-batch between passes without and with gradients.

    The rows that are handed round, and on the first stage the embeddings.
    """
    first = sizes.plan.first_with_gradient
    if first == 0 or stage not in (0, sizes.num_stages - 1):
        return 0
    num_rows = sizes.plan.rows_handed(first - 1) + (stage == 0)
    return sizes.num_micro_batches * sizes.hidden_bytes * num_rows


def _scoring(sizes: RankSizes) -> float:
    """What scores of fewer steps need beside logits: a mixture, and the rows of the pass, which is not over.

    The first layer has kept these rows, unless it computes those of slot 0 once for all passes and keeps only
    what it made of the others.
    """
    is_repeated = sizes.facts.repeats_embeddings and not sizes.skips_pruned_rows
    is_kept = sizes.recomputes_layers or not is_repeated
    return sizes.hidden_bytes * (1 if is_kept else 1 + sizes.plan.slots[-1])


def _gradient_sums(sizes: RankSizes, parameters: RankParameters) -> float:
    """Gradients of weights that several passes of one graph use: autograd sums them before it returns any.

    Where layers are computed again, each of their uses is a backward of its own.
    """
    if sizes.num_passes - sizes.plan.first_with_gradient == 1:
        return 0
    weights: float = parameters.method
    decider = sizes.account.decider
    if decider is not None and decider.per_iteration:
        # Each gate is used once, so that the final norm remains.
        weights = sizes.shape.norm_parameters
    if sizes.accumulates:
        # Products add to the buffer themselves.
        return sizes.value_bytes * weights
    if not sizes.recomputes_layers:
        weights += parameters.layers
    if sizes.mixes:
        weights += parameters.vocabulary
    return sizes.value_bytes * weights


def _gathered(sizes: RankSizes) -> float:
    """Megatron's buffer that sequence parallelism gathers the largest pass's rows into; it is never freed."""
    if not sizes.shards_tokens:
        return 0
    return sizes.tokens * max(sizes.plan.slots) * sizes.shape.hidden_size * sizes.value_bytes
