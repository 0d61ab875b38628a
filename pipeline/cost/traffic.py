"""What a rank receives from others in an iteration, by axis of the layout: the layers, and the gradients.

Collectives are taken to move as few bytes as they can: of n ranks each receives (n - 1) / n of what is
gathered or scattered, and twice that of what is summed for all. Embedding, head, mixtures and the numbers per
token that context-parallel ranks gather are left out: they are few beside the layers.
"""

from dataclasses import dataclass

from pipeline.cost.activations import key_value_channels
from pipeline.cost.parameters import rank_parameters
from pipeline.cost.rank_sizes import BFLOAT16, FLOAT32, RankSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTraffic:
    """Bytes that a rank receives in an iteration.

    Attributes:
        tensor: hidden states, by all layers of a rank, and the matrices that Muon orthogonalizes.
        context: keys and values forward and backward, and their gradients, by all layers of a rank.
        pipeline: hidden states and their gradients, from the neighbouring stages.
        data: gradients and weights, from ranks that hold the same weights; once.
    """

    tensor: float
    context: float
    pipeline: float
    data: float


def rank_traffic(sizes: RankSizes) -> RankTraffic:
    """Return the traffic of the rank with most layers."""
    num_layers, stage = max((layers, stage) for stage, layers in enumerate(sizes.stage_layers))
    passes = range(sizes.num_passes)
    of_layers = sizes.num_micro_batches * num_layers
    return RankTraffic(
        tensor=of_layers * sum(tensor_bytes(sizes, index) for index in passes) + _matrices(sizes, num_layers),
        context=of_layers * sum(context_bytes(sizes, index) for index in passes),
        pipeline=sizes.num_micro_batches * sum(pipeline_bytes(sizes, index) for index in passes),
        data=_data(sizes, stage),
    )


def context_bytes(sizes: RankSizes, index: int) -> float:
    """Return what one layer receives from context-parallel ranks in one pass of one micro-batch.

    Keys and values of the other ranks forward, again backward, and the gradients that others have for this
    rank's own; where backward computes the layer again, once more forward.
    """
    rows = sizes.tokens * sizes.plan.slots[index]
    num_steps = index + 1 if sizes.facts.sees_earlier_steps else 1
    once = (sizes.context - 1) * rows * num_steps * key_value_channels(sizes, index) * sizes.value_bytes
    return once * (_num_forwards(sizes, index) + (2 if sizes.plan.has_gradient(index) else 0))


def _num_forwards(sizes: RankSizes, index: int) -> int:
    return 1 + (sizes.recomputes_layers and sizes.plan.has_gradient(index))


def tensor_bytes(sizes: RankSizes, index: int) -> float:
    """Return what one layer receives from tensor-parallel ranks in one pass of one micro-batch.

    Attention and MLP each gather their input and scatter the sum of their outputs, or sum it for all.
    With parallel residuals one sum serves both. Sequence parallelism gathers the inputs once more for the
    gradients of weights.
    """
    has_gradient = sizes.plan.has_gradient(index)
    num_sums = 1 if sizes.shape.architecture == "gpt_neox" else 2
    if sizes.shards_tokens:
        forward, backward = 2 + num_sums, num_sums + 2 + 2
    else:
        forward, backward = 2 * num_sums, 2 * 2
    rows = sizes.tokens * sizes.plan.slots[index]
    once = rows * sizes.shape.hidden_size * sizes.value_bytes * (sizes.tensor - 1) / sizes.tensor
    return once * (forward * _num_forwards(sizes, index) + (backward if has_gradient else 0))


def pipeline_bytes(sizes: RankSizes, index: int) -> float:
    """Return what a stage receives from its neighbours in one pass of one micro-batch, in both directions."""
    if sizes.num_stages == 1:
        return 0
    return sizes.hidden_bytes * sizes.plan.slots[index] * (2 if sizes.plan.has_gradient(index) else 1)


def _matrices(sizes: RankSizes, num_layers: int) -> float:
    """Muon gathers the updates of matrices in bfloat16, those of one data-parallel rank's share."""
    if not sizes.num_ns_steps:
        return 0
    elements = num_layers * sizes.shape.layer_weights / sizes.data
    return BFLOAT16 * elements * (sizes.tensor - 1) / sizes.tensor


def _data(sizes: RankSizes, stage: int) -> float:
    """Gradients are scattered in float32 and weights gathered, or gradients are summed for all.

    Those of Muon are summed for all, and weights are sent by the ranks that update them.
    """
    if sizes.num_ns_steps:
        per_parameter = 2 * FLOAT32 + sizes.value_bytes
    else:
        per_parameter = FLOAT32 + sizes.value_bytes if sizes.shares_optimizer else 2 * FLOAT32
    return rank_parameters(sizes, stage).total * per_parameter * (sizes.data - 1) / sizes.data
