"""What a pass of one micro-batch keeps on a rank until its backward: layers, method, mixtures, readout."""

from dataclasses import dataclass

from megatron_ext.ponder.config import Method, Mixture
from pipeline.cost.flops import GATE_WIDENING, ROUTER_NARROWING
from pipeline.cost.layer_memory import layer_kept, layer_working
from pipeline.cost.rank_sizes import BOOL, FLOAT32, RankSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class PassBytes:
    """Bytes of one pass of one micro-batch on a rank of one stage.

    Attributes:
        layers: what its layers have kept, or their inputs where they are computed again.
        keys: keys and values kept for halted tokens, beside those that the layers keep.
        method: states handed on, router, gates.
        noted: normed states that are let go when the micro-batch's last forward is done.
        vocabulary: distributions of the mixtures at its end.
        again: what is computed again at a time: a layer's tensors, or those of all layers.
        working: what backward through a layer needs beside it.
        mixing: what the mixtures need beside what they keep, forward or backward.
    """

    layers: float
    keys: float
    method: float
    noted: float
    vocabulary: float
    again: float
    working: float
    mixing: float

    @property
    def kept(self) -> float:
        """All that stays until backward."""
        return self.layers + self.keys + self.method + self.vocabulary


def pass_bytes(sizes: RankSizes, index: int, stage: int) -> PassBytes:
    """Account one pass.

    Args:
        sizes: the run.
        index: of the pass, from 0.
        stage: pipeline stage, from 0.
    """
    rows = sizes.tokens * sizes.slots[index]
    num_layers = sizes.stage_layers[stage]
    whole = layer_kept(sizes, rows, index)
    layers, again = num_layers * whole, 0.0
    entered = sizes.hidden_bytes * sizes.slots[index]
    if sizes.recompute == "full":
        layers, again = num_layers * entered + _angles(sizes, rows), whole - entered
    if sizes.recompute == "per_pass":
        layers, again = entered + _angles(sizes, rows), num_layers * whole - entered
    is_last = stage == sizes.num_stages - 1
    mixed = mixture_rows(sizes, index) if is_last else 0
    mixture = _mixture_kept(sizes)
    return PassBytes(
        layers=layers,
        keys=_kept_keys(sizes, rows, index, num_layers),
        method=_sent(sizes, entered, stage) + (_method(sizes, index, entered) if is_last else 0),
        noted=_noted(sizes, index, entered) if is_last else 0,
        vocabulary=mixed * mixture,
        again=again,
        working=layer_working(sizes, rows, index) + _later_gradients(sizes, rows, index, num_layers),
        # Logits, their distance to the largest and its exponential, all in float32.
        mixing=mixed * max(3 * FLOAT32 - mixture, 0),
    )


def mixture_rows(sizes: RankSizes, index: int) -> float:
    """Distributions that a pass makes for the next one, as numbers [rows, V / t]."""
    if not sizes.mixes or index == sizes.num_passes - 1:
        return 0
    thoughts = sizes.slots[index + 1] - 1 if sizes.method.has_sweeps else 1
    return thoughts * sizes.vocabulary_elements


def readout_bytes(sizes: RankSizes) -> float:
    """The logits of a micro-batch on the last stage: as computed, and in float32 for the cross-entropy.

    With padding rows there is a second copy without them; in float32 that is where the softmax is computed.
    """
    is_padded = sizes.shape.padded_vocab_size != sizes.shape.vocab_size
    if sizes.value_bytes == FLOAT32:
        return sizes.vocabulary_elements * FLOAT32 * (2 if is_padded else 1)
    return sizes.vocabulary_elements * (FLOAT32 + sizes.value_bytes)


def _mixture_kept(sizes: RankSizes) -> float:
    """Per row and piece: the weights in float32, as they are multiplied, and the mask of the largest."""
    narrow = sizes.value_bytes if sizes.value_bytes < FLOAT32 else 0
    return FLOAT32 + narrow + (BOOL if sizes.mixture is Mixture.TOP_K else 0)


def _angles(sizes: RankSizes, rows: float) -> float:
    """Rotary angles stay where layers are computed again: their factors are not kept."""
    return rows * sizes.rotary_size * FLOAT32


def _kept_keys(sizes: RankSizes, rows: float, index: int, num_layers: int) -> float:
    """Keys and values for halted tokens where attention is computed again and does not keep them itself."""
    is_kept = sizes.method is Method.ADAPONDERLM and index < sizes.num_passes - 1
    if not is_kept or sizes.recompute == "none":
        return 0
    shape = sizes.shape
    extra: float = 0
    if index == 0:
        if sizes.recompute == "selective":
            return 0
        # The values of the first iteration are a view of the fused product.
        extra = shape.query_size + shape.key_value_size / 2
    return num_layers * rows * (shape.key_value_size + extra) / sizes.tensor * sizes.value_bytes


def _later_gradients(sizes: RankSizes, rows: float, index: int, num_layers: int) -> float:
    """Gradients that later passes have left for the kept keys and values of this one.

    In one graph they go where autograd is at work, layer by layer; between graphs all layers' wait.
    """
    is_cut = sizes.recompute != "none" or sizes.num_stages > 1
    if sizes.method is not Method.ADAPONDERLM or index == sizes.num_passes - 1 or not is_cut:
        return 0
    return num_layers * rows * sizes.shape.key_value_size / sizes.tensor * sizes.value_bytes


def _method(sizes: RankSizes, index: int, entered: float) -> float:
    """What the last stage makes of the hidden states of a pass, and keeps until the pass's backward."""
    is_final = index == sizes.num_passes - 1
    if is_final:
        # Before and after the final norm; the mixture over steps.
        mixed = sizes.hidden_bytes if sizes.method is Method.PONDERLM3 else 0
        return 2 * entered + mixed + (_router(sizes) if sizes.method is Method.PONDERLM3 else 0)
    if sizes.method is Method.LOOP:
        # The hidden states are the next pass's input.
        return 0
    kept = entered
    if sizes.method is Method.PONDERLM3:
        kept += _router(sizes)
    if sizes.method is Method.ADAPONDERLM:
        kept += _gate(sizes)
    if not sizes.method.has_sweeps:
        kept += entered
    if sizes.mixes:
        kept += sizes.hidden_bytes
    return kept


def _noted(sizes: RankSizes, index: int, entered: float) -> float:
    """Latent thoughts, remembered for the residual: all normed states of a pass while building up."""
    if not sizes.method.has_sweeps or index == sizes.num_passes - 1:
        return 0
    return sizes.hidden_bytes * sizes.num_latent_thoughts if index >= sizes.num_latent_thoughts else entered


def _router(sizes: RankSizes) -> float:
    """Slot 0 in float32, and the router's layer before and after its activation."""
    hidden = sizes.shape.hidden_size
    narrow = hidden // ROUTER_NARROWING
    weights = FLOAT32 * hidden * narrow if sizes.value_bytes < FLOAT32 else 0
    return sizes.own_tokens * FLOAT32 * (hidden + 2 * narrow) + weights


def _gate(sizes: RankSizes) -> float:
    """The hidden state in float32, and the gate's layer before and after its activation."""
    hidden = sizes.shape.hidden_size
    wide = GATE_WIDENING * hidden
    is_narrow = sizes.value_bytes < FLOAT32
    weights = FLOAT32 * hidden * wide if is_narrow else 0
    return sizes.own_tokens * FLOAT32 * (is_narrow * hidden + 2 * wide) + weights


def _sent(sizes: RankSizes, entered: float, stage: int) -> float:
    """What Megatron's schedule holds of a pass on several stages: the rows received, and those sent."""
    if sizes.num_stages == 1:
        return 0
    return entered if stage == sizes.num_stages - 1 else 2 * entered
