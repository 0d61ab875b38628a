"""The parameters that a rank holds, and the bytes that stay allocated for them during the whole run."""

from dataclasses import dataclass

from pipeline.cost.rank_sizes import BFLOAT16, FLOAT32, RankSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class RankParameters:
    """Number of parameters on a rank of one stage.

    Attributes:
        layers: of the transformer layers.
        vocabulary: embedding, head, and the copy of the embedding that mixtures need on a last stage.
        method: final norm, router, gates.
    """

    layers: float
    vocabulary: float
    method: float

    @property
    def total(self) -> float:
        return self.layers + self.vocabulary + self.method


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes of a rank that are allocated during the whole step."""

    weights: float
    gradients: float
    main_weights: float
    moments: float

    @property
    def total(self) -> float:
        """Bytes of all four."""
        return self.weights + self.gradients + self.main_weights + self.moments


def rank_parameters(sizes: RankSizes, stage: int) -> RankParameters:
    """Count the parameters of a rank.

    Args:
        sizes: the run.
        stage: which pipeline stage, from 0.
    """
    shape, is_first, is_last = sizes.shape, stage == 0, stage == sizes.num_stages - 1
    copies = int(is_first) + int(is_last)
    if shape.tied_embeddings:
        copies = min(copies, 1)
    elif is_last and not is_first and sizes.mixes:
        copies += 1
    return RankParameters(
        layers=sizes.stage_layers[stage] * _layer_parameters(sizes),
        vocabulary=copies * shape.vocabulary_weights / sizes.tensor,
        method=_method_parameters(sizes) if is_last else 0,
    )


def state_bytes(sizes: RankSizes, parameters: RankParameters) -> StateBytes:
    """Weights, float32 gradients, and the optimizer's state, which data-parallel ranks may share.

    float32 weights are their own main weights.
    """
    owned = parameters.total / (sizes.data if sizes.shares_optimizer else 1)
    return StateBytes(
        weights=sizes.value_bytes * parameters.total,
        gradients=FLOAT32 * parameters.total,
        main_weights=FLOAT32 * owned if sizes.value_bytes == BFLOAT16 else 0,
        moments=2 * FLOAT32 * owned,
    )


def _layer_parameters(sizes: RankSizes) -> float:
    """One layer's share of a rank: norms, and biases added after a reduction, are not split."""
    shape = sizes.shape
    split = shape.layer_weights
    whole = 2 * shape.norm_parameters
    if shape.has_biases:
        split += shape.query_size + shape.key_value_size + shape.ffn_hidden_size
        whole += 2 * shape.hidden_size
    return split / sizes.tensor + whole


def _method_parameters(sizes: RankSizes) -> int:
    decider = sizes.account.decider
    parameters = sizes.shape.norm_parameters
    if decider is not None:
        parameters += decider.num_parameters(sizes.shape.hidden_size, sizes.num_latent_thoughts)
    return parameters
