"""Memory and operations of Muon, whose state and work data-parallel ranks share by whole weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from megatron_ext.sharing import balanced_shares
from pipeline.cost.parameters import StateBytes, rank_parameters
from pipeline.cost.rank_sizes import BFLOAT16, FLOAT32, RankSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A weight of a rank.

    Attributes:
        elements: on this rank.
        matrices: complete shapes (rows, columns) of the matrices in it; none where AdamW updates it.
    """

    elements: float
    matrices: tuple[tuple[int, int], ...] = ()


def rank_weights(sizes: RankSizes, stage: int) -> list[Weight]:
    """Return the weights of a rank of a pipeline stage."""
    shape, parameters = sizes.shape, rank_parameters(sizes, stage)
    num_copies = round(parameters.vocabulary * sizes.tensor / shape.vocabulary_weights)
    weights = [weight for _ in range(sizes.stage_layers[stage]) for weight in _layer(sizes)]
    weights += [Weight(elements=shape.vocabulary_weights / sizes.tensor)] * num_copies
    if parameters.method:
        weights += [*_norm(sizes), *_decider(sizes)]
    return weights


def state_bytes(sizes: RankSizes, stage: int) -> StateBytes:
    """Return what a rank holds during the whole step; of the data-parallel ranks, the one that holds most."""
    parameters = rank_parameters(sizes, stage)
    owned = _fullest_share(sizes, stage, lambda weight: _state_size(sizes, weight))
    has_main_weights = sizes.value_bytes == BFLOAT16
    return StateBytes(
        weights=sizes.value_bytes * parameters.total,
        gradients=FLOAT32 * parameters.total,
        main_weights=FLOAT32 * has_main_weights * sum(weight.elements for weight in owned),
        moments=FLOAT32 * sum(map(_moments, owned)),
    )


def update_bytes(sizes: RankSizes, stage: int) -> float:
    """Return what the update needs in addition: the largest matrix, or the weights of a rank on their way."""
    weights = rank_weights(sizes, stage)
    largest = max(
        # The direction in float32; in bfloat16 the matrix, two of an iteration, and two squares.
        FLOAT32 * weight.elements + BFLOAT16 * (3 * rows * columns + 2 * min(rows, columns) ** 2)
        for weight in weights
        for rows, columns in weight.matrices
    )
    if sizes.data == 1:
        return largest
    sent = _fullest_share(sizes, stage, lambda weight: weight.elements)
    return max(largest, sizes.value_bytes * sum(weight.elements for weight in sent))


def update_flops(sizes: RankSizes) -> float:
    """Return the operations of Newton-Schulz iterations in a step, of the rank that makes most.

    Tensor-parallel ranks each orthogonalize the complete matrix.
    """

    def flops(weight: Weight) -> float:
        return sizes.num_ns_steps * sum(_iteration_flops(*matrix) for matrix in weight.matrices)

    return max(
        sum(map(flops, _fullest_share(sizes, stage, flops))) for stage in range(len(sizes.stage_layers))
    )


def _iteration_flops(rows: int, columns: int) -> float:
    """X X^T = G, G G, and their sum times X, for X with the shorter side as its rows."""
    short, long = sorted((rows, columns))
    return 2 * (2 * short * short * long + short**3)


def _fullest_share(sizes: RankSizes, stage: int, amount: Callable[[Weight], float]) -> Sequence[Weight]:
    """Return the weights of the data-parallel rank with most of something."""
    weights = rank_weights(sizes, stage)
    shares = balanced_shares([_state_size(sizes, weight) for weight in weights], sizes.data)
    held = ([weights[number] for number in share] for share in shares)
    return max(held, key=lambda share: sum(map(amount, share)))


def _moments(weight: Weight) -> float:
    return weight.elements * (1 if weight.matrices else 2)


def _state_size(sizes: RankSizes, weight: Weight) -> float:
    """Return the values of a weight's state: moments, and main weights in bf16."""
    return _moments(weight) + weight.elements * (sizes.value_bytes == BFLOAT16)


def _layer(sizes: RankSizes) -> Iterator[Weight]:
    shape, split = sizes.shape, sizes.tensor
    hidden, inner = shape.hidden_size, shape.ffn_hidden_size
    one_of_two = shape.key_value_size // 2
    weights = (
        ((shape.query_size, hidden), (one_of_two, hidden), (one_of_two, hidden)),
        ((hidden, shape.query_size),),
        ((inner, hidden),) * (2 if shape.is_gated else 1),
        ((hidden, inner),),
    )
    for matrices in weights:
        yield Weight(elements=sum(rows * columns for rows, columns in matrices) / split, matrices=matrices)
    yield from 2 * _norm(sizes)
    if shape.has_biases:
        # Biases that are added after a reduction are not split.
        biases = ((shape.query_size + shape.key_value_size) / split, hidden, inner / split, hidden)
        yield from (Weight(elements=elements) for elements in biases)


def _norm(sizes: RankSizes) -> list[Weight]:
    hidden = sizes.shape.hidden_size
    return [Weight(elements=hidden)] * (sizes.shape.norm_parameters // hidden)


def _decider(sizes: RankSizes) -> Iterator[Weight]:
    decider = sizes.account.decider
    if decider is not None:
        shapes = decider.shapes(sizes.shape.hidden_size, sizes.num_latent_thoughts)
        for _ in decider.prefixes(sizes.num_latent_thoughts):
            yield from (Weight(elements=math.prod(shape)) for shape in shapes.values())
