"""What a pass of one micro-batch keeps on a rank until its backward: layers, method, mixtures, readout.

The tensors of a layer are those that autograd keeps of :mod:`megatron_ext.model.layers`, in the order in
which they are made. `python -m tests.bench memory` compares the sums with what is really allocated.
"""

from dataclasses import dataclass

from megatron_ext.ponder.config import Mixture
from megatron_ext.ponder.parts import PART_ELEMENTS
from pipeline.cost.rank_sizes import BOOL, FLOAT32, RankSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class PassBytes:
    """Bytes of one pass of one micro-batch on a rank of one stage.

    Attributes:
        layers: what its layers have kept, or their inputs where they are computed again.
        keys: what later passes take from this one's layers, beside what the layers keep: keys and values of
            halted tokens, or what the first layer has made of slot 0.
        method: states handed on, router, gates.
        noted: tensors that are freed when the micro-batch's last forward is done.
        vocabulary: distributions of the mixtures at its end.
        again: what recomputation holds at a time: some tensors of one layer, all of them, or those of all
            layers.
        waiting: gradients that wait for the pass's backward, of what later passes have used.
        working: what backward through a layer needs in addition.
        mixing: what the mixtures need in addition to what they keep, forward or backward.
        predicting: logits of the step, which the penalty asks for in forward, without gradient.
    """

    layers: float
    keys: float
    method: float
    noted: float
    vocabulary: float
    again: float
    waiting: float
    working: float
    mixing: float
    predicting: float

    @property
    def kept(self) -> float:
        """Bytes that stay until backward."""
        return self.layers + self.keys + self.method + self.vocabulary


def pass_bytes(sizes: RankSizes, index: int, stage: int) -> PassBytes:
    """Account one pass.

    Args:
        sizes: the run.
        index: of the pass, from 0.
        stage: pipeline stage, from 0.
    """
    whole = _whole_pass_bytes(sizes, index, stage)
    return whole if sizes.plan.has_gradient(index) else _without_gradient(sizes, whole, index, stage)


def _without_gradient(sizes: RankSizes, whole: PassBytes, index: int, stage: int) -> PassBytes:
    """Account a pass of which nothing is kept for a backward, from what it would keep with one.

    Only the last of these passes leaves something: the thoughts, for the next residual. While one runs it
    holds one layer, for which what such a layer would keep is an upper bound, and its mixtures.
    """
    is_last = stage == sizes.num_stages - 1
    is_next_to_gradients = index == sizes.plan.first_with_gradient - 1
    mixed = mixture_rows(sizes, index) if is_last else 0
    rows = sizes.tokens * sizes.plan.slots[index]
    return PassBytes(
        layers=0,
        keys=0,
        method=0,
        noted=whole.noted if is_next_to_gradients else 0,
        vocabulary=0,
        again=0,
        waiting=0,
        working=_layer_kept(sizes, rows, index) + whole.noted,
        mixing=_mixing(sizes, mixed, 0),
        predicting=0,
    )


def _whole_pass_bytes(sizes: RankSizes, index: int, stage: int) -> PassBytes:
    num_slots = sizes.plan.slots[index]
    rows = sizes.tokens * num_slots
    num_layers = sizes.stage_layers[stage]
    whole = _layer_kept(sizes, rows, index)
    all_layers = num_layers * whole - _spared(sizes, index, stage)
    layers, again = all_layers, 0.0
    entered = sizes.hidden_bytes * num_slots
    read = sizes.hidden_bytes * sizes.num_slots_read(index)
    if sizes.recompute == "full":
        layers, again = num_layers * entered, whole - entered
    if sizes.recompute == "per_pass":
        layers, again = entered, all_layers - entered
    if sizes.recomputes_cheap_work:
        again = rows * _cheap_at_a_time(sizes, index)
    is_last = stage == sizes.num_stages - 1
    mixed = mixture_rows(sizes, index) if is_last else 0
    mixture = _mixture_kept(sizes)
    of_slot = _repeated_slot(sizes, index, stage)
    return PassBytes(
        layers=layers + _turns(sizes, rows),
        keys=_kept_keys(sizes, rows, index, num_layers) + (of_slot if _is_cut(sizes) else 0),
        method=_sent(sizes, entered, stage) + (_method(sizes, index, read) if is_last else 0),
        noted=(_noted(sizes, index) if is_last else 0) + (0 if _is_cut(sizes) else of_slot),
        vocabulary=mixed * mixture,
        again=again,
        waiting=_later_gradients(sizes, rows, index, num_layers)
        + (_readout_gradients(sizes, index) if is_last else 0),
        working=_layer_working(sizes, rows, index),
        mixing=_mixing(sizes, mixed, mixture) + (_summed_parts(sizes) if mixed else 0),
        predicting=_predictions(sizes, index) if is_last else 0,
    )


def mixture_rows(sizes: RankSizes, index: int) -> float:
    """Return the elements of the distributions that a pass makes for the next one, [rows, V / t]."""
    return sizes.plan.rows_handed(index) * sizes.vocabulary_elements if sizes.mixes else 0


def _predictions(sizes: RankSizes, index: int) -> float:
    """Logits of a step that the penalty asks for."""
    is_asked = sizes.facts.predicts_each_step and not sizes.plan.is_final(index)
    return readout_bytes(sizes) if is_asked else 0


def readout_bytes(sizes: RankSizes) -> float:
    """Return the bytes of a micro-batch's logits: as computed, and in float32 for the cross-entropy.

    With padding rows there is a second copy without them; in float32 that is where the softmax is computed.
    Where it is fused there is no copy at all. Steps that are read alone too keep the same, and a copy of
    their rows each; logits as computed are there for one reading at a time.
    """
    num_steps = sizes.plan.slots[-1] if sizes.supervises_steps else 0
    kept = (1 + num_steps) * (sizes.value_bytes if sizes.fuses else FLOAT32)
    is_padded = sizes.shape.padded_vocab_size != sizes.shape.vocab_size
    is_copied = not sizes.fuses and (is_padded or sizes.value_bytes < FLOAT32)
    computed = sizes.value_bytes if is_copied else 0
    return sizes.vocabulary_elements * (kept + computed) + num_steps * sizes.hidden_bytes


def _mixture_kept(sizes: RankSizes) -> float:
    """Per row and piece: the weights in float32, as they are multiplied, and the mask of the largest."""
    if sizes.fuses:
        return 0
    narrow = sizes.value_bytes if sizes.value_bytes < FLOAT32 else 0
    return FLOAT32 + narrow + (BOOL if sizes.mixture is Mixture.TOP_K else 0)


def _mixing(sizes: RankSizes, elements: float, kept: float) -> float:
    """Bytes of making distributions of so many elements, beside the `kept` ones of each."""
    if sizes.fuses:
        # Of a part: logits, weights, and the gradients of both.
        return 4 * sizes.value_bytes * min(elements, PART_ELEMENTS)
    # Logits, their distance to the largest and its exponential, all in float32.
    return elements * max(3 * FLOAT32 - kept, 0)


def _summed_parts(sizes: RankSizes) -> float:
    """Gradients of head and embedding that a mixture's backward sums over its parts, and what it returns."""
    if not sizes.fuses or sizes.accumulates:
        return 0
    narrow = sizes.value_bytes if sizes.value_bytes < FLOAT32 else 0
    return 2 * (FLOAT32 + narrow) * sizes.shape.vocabulary_weights / sizes.tensor


def _turns(sizes: RankSizes, rows: float) -> float:
    """Cosines and sines of a pass, which all layers share."""
    return rows * sizes.rotary_size * sizes.value_bytes


def _kept_keys(sizes: RankSizes, rows: float, index: int, num_layers: int) -> float:
    """Keys and values kept for halted tokens, where attention is computed again and does not keep its own."""
    is_kept = sizes.facts.halts_in_training and not sizes.plan.is_final(index)
    if not is_kept or not sizes.recomputes_layers:
        return 0
    return num_layers * rows * sizes.shape.key_value_size / sizes.tensor * sizes.value_bytes


def _later_gradients(sizes: RankSizes, rows: float, index: int, num_layers: int) -> float:
    """Gradients for keys and values of all layers that are kept, before and while a pass runs backward.

    Later passes have left them for its own; a pass that sees all earlier ones leaves them for theirs. Those
    that the final pass leaves come layer by layer, as what its layers keep is released.
    """
    if not sizes.facts.halts_in_training or sizes.plan.is_final(index):
        return 0
    num_passes = 1 + (index if sizes.facts.sees_earlier_steps else 0)
    return num_passes * num_layers * rows * sizes.shape.key_value_size / sizes.tensor * sizes.value_bytes


def _readout_gradients(sizes: RankSizes, index: int) -> float:
    """Gradients that the mean over steps has left for the hidden states of a pass and of earlier ones."""
    if not sizes.facts.sees_earlier_steps or sizes.plan.is_final(index):
        return 0
    return sizes.hidden_bytes * (1 + index)


def _is_cut(sizes: RankSizes) -> bool:
    """Whether passes have graphs of their own, between which gradients wait."""
    return sizes.recomputes_layers or sizes.num_stages > 1


def _repeated_slot(sizes: RankSizes, index: int, stage: int) -> float:
    """What later passes take of slot 0 of the first layer; between graphs its gradient waits too."""
    is_repeated = sizes.facts.repeats_embeddings and sizes.num_passes > 1
    if not is_repeated or sizes.skips_pruned_rows or stage > 0 or index != sizes.plan.first_with_gradient:
        return 0
    shape = sizes.shape
    channels = (shape.query_size + shape.key_value_size) / sizes.tensor
    channels += shape.hidden_size if shape.has_parallel_residual else 0
    return sizes.tokens * channels * sizes.value_bytes * (2 if _is_cut(sizes) else 1)


def _spared(sizes: RankSizes, index: int, stage: int) -> float:
    """What the first and the last layer do not keep of rows that need not be computed."""
    if sizes.skips_pruned_rows:
        return 0
    spared = 0.0
    is_repeated = sizes.facts.repeats_embeddings and index != sizes.plan.first_with_gradient
    if stage == 0 and is_repeated:
        spared += _spared_by_first_layer(sizes, index)
    if stage == sizes.num_stages - 1:
        spared += _spared_by_last_layer(sizes, index)
    return sizes.tokens * spared


def _spared_by_first_layer(sizes: RankSizes, index: int) -> float:
    """Per token: of slot 0, which an earlier pass has computed."""
    if not sizes.shape.has_parallel_residual:
        return _norms(sizes) / 2
    # Both branches have a copy of the other rows.
    copied = (sizes.plan.slots[index] - 1) * _hidden(sizes)
    return _norms(sizes) + _mlp(sizes) - copied


def _spared_by_last_layer(sizes: RankSizes, index: int) -> float:
    """Per token: of the slots that nobody reads."""
    shape, num_slots = sizes.shape, sizes.plan.slots[index]
    num_read = sizes.num_slots_read(index)
    unread, query = num_slots - num_read, shape.query_size / sizes.tensor * sizes.value_bytes
    if unread == 0:
        return 0
    # A parallel residual has a copy of the rows that are read as the input of its second norm.
    norms = ((0 if sizes.recomputes_cheap_work else unread) - num_read) * _hidden(sizes)
    if not shape.has_parallel_residual:
        norms = unread * _norms(sizes) / 2
    is_merged_again = _merges_again(sizes)
    if sizes.has_weighted_keys(index):
        attended = 0 if is_merged_again else unread * query
    elif unread == num_slots - 1 and sizes.joins_attention:
        # The last slot alone attends by itself.
        attended = unread * query
    else:
        attended = 0 if is_merged_again else -num_read * query
    return norms + attended + unread * _mlp(sizes)


def _hidden(sizes: RankSizes) -> float:
    """Per row: a hidden state, as a rank holds it."""
    return sizes.shape.hidden_size * sizes.value_bytes / _token_split(sizes)


def _method(sizes: RankSizes, index: int, entered: float) -> float:
    """What the last stage computes from the hidden states of a pass and keeps until the pass's backward.

    Args:
        sizes: the run.
        index: of the pass.
        entered: bytes of the hidden states that are read.
    """
    decided = _decider(sizes) if sizes.account.decides_after(index, sizes.plan) else 0
    if sizes.plan.is_final(index):
        # Hidden states before and after the final norm; the mixture over steps.
        has_mixture = sizes.facts.weighs_slots or sizes.facts.sees_earlier_steps
        mixed = sizes.hidden_bytes if has_mixture else 0
        return 2 * entered + mixed + decided
    if not sizes.facts.norms_each_pass:
        # The hidden states are the next pass's input.
        return 0
    kept = entered + decided
    if sizes.facts.iterates:
        kept += entered
    if sizes.mixes:
        kept += sizes.hidden_bytes
    return kept


def _noted(sizes: RankSizes, index: int) -> float:
    """Latent thoughts that a pass hands on, remembered for the residual of the next sweep."""
    return sizes.hidden_bytes * sizes.plan.rows_handed(index) if sizes.facts.has_sweeps else 0


def _decider(sizes: RankSizes) -> float:
    """What a router or a gate keeps: its input in float32, its layer before and after the activation."""
    decider, hidden = sizes.account.decider, sizes.shape.hidden_size
    assert decider is not None, "only methods that halt have one"
    inner, is_narrow = decider.num_hidden(hidden), sizes.value_bytes < FLOAT32
    weights = FLOAT32 * hidden * inner if is_narrow else 0
    # Slot 0 of several is a copy even where float32 needs none.
    copied = hidden if is_narrow or sizes.facts.has_slots else 0
    return sizes.own_tokens * FLOAT32 * (copied + 2 * inner) + weights


def _sent(sizes: RankSizes, entered: float, stage: int) -> float:
    """Rows that Megatron's schedule holds for a pass on several stages: those received, and those sent."""
    if sizes.num_stages == 1:
        return 0
    return entered if stage == sizes.num_stages - 1 else 2 * entered


def _layer_kept(sizes: RankSizes, rows: float, index: int) -> float:
    """Return the bytes that a layer keeps for backward, its input included.

    Args:
        sizes: the run.
        rows: R of the pass.
        index: of the pass.
    """
    return rows * (_norms(sizes) + _attention(sizes, index) + _mlp(sizes))


def _layer_working(sizes: RankSizes, rows: float, index: int) -> float:
    """Return the bytes that backward through a layer needs in addition to what the layers have kept.

    The gradients of the hidden state, those inside the MLP, whose backward comes first, and of one weight; or
    the keys of other ranks, for attention.
    """
    shape, value = sizes.shape, sizes.value_bytes
    inner = shape.ffn_hidden_size / sizes.tensor
    hidden = shape.hidden_size / _token_split(sizes)
    weight = shape.hidden_size * inner * value
    mlp = rows * value * (2 * hidden + (2 if shape.is_gated else 1) * inner) + weight
    return max(mlp, rows * value * 2 * hidden + _gathered_keys(sizes, rows, index))


def _gathered_keys(sizes: RankSizes, rows: float, index: int) -> float:
    """Keys and values of whole sequences, gathered again in backward, and their gradients.

    The gradients are summed in float32; those of one call of the kernel, and heads that share keys, which the
    kernel is given one by one, are as large as what it attends to.
    """
    if sizes.context == 1:
        return 0
    shape = sizes.shape
    group_size = shape.num_attention_heads // shape.num_query_groups
    of_kernel = sizes.value_bytes * (1 if group_size == 1 else 2 * group_size)
    elements = rows * sizes.context * key_value_channels(sizes, index)
    num_steps = index + 1 if sizes.facts.sees_earlier_steps else 1
    return elements * (num_steps * (sizes.value_bytes + FLOAT32) + of_kernel)


def key_value_channels(sizes: RankSizes, index: int) -> float:
    """Return the channels of a row's keys and values on a rank, with those of weights."""
    channels = sizes.shape.key_value_size / sizes.tensor
    if sizes.has_weighted_keys(index):
        channels *= sizes.weighted_head_size / sizes.shape.kv_channels
    return channels


def _token_split(sizes: RankSizes) -> int:
    return sizes.tensor if sizes.shards_tokens else 1


def _norms(sizes: RankSizes) -> float:
    """Per row: the input and the output of both norms; a parallel residual has one input for both."""
    shape, value = sizes.shape, sizes.value_bytes
    num_inputs = 1 if shape.architecture == "gpt_neox" else 2
    outputs = 0 if sizes.recomputes_cheap_work else 2 * value * shape.hidden_size
    if shape.has_biases or sizes.has_fused_norms:
        inputs: float = num_inputs * value * shape.hidden_size
    else:
        # Several operations: the input and the normed input, both in float32.
        inputs = num_inputs * 2 * FLOAT32 * shape.hidden_size
        if sizes.recomputes_cheap_work and value < FLOAT32:
            # To begin with again: the input as it is given.
            inputs += num_inputs * value * shape.hidden_size
    return (outputs + inputs) / _token_split(sizes)


def _attention(sizes: RankSizes, index: int) -> float:
    """Per row: what the product of queries and keys takes, and the attended values."""
    shape, value = sizes.shape, sizes.value_bytes
    query, key = shape.query_size / sizes.tensor, shape.key_value_size / 2 / sizes.tensor
    heads = shape.num_attention_heads / sizes.tensor
    if _keeps_scores(sizes, index):
        return value * (_attended_by_products(sizes, index) + _attended(sizes, index))
    taken = query + 2 * key
    is_weighted = sizes.has_weighted_keys(index)
    if is_weighted:
        taken *= sizes.weighted_head_size / shape.kv_channels
    # Removing the columns of log w, or joining documents, makes a copy.
    is_copied = is_weighted or (sizes.separates_documents and sizes.context == 1)
    attended = _attended(sizes, index) + (query if is_copied and not _merges_again(sizes) else 0)
    return value * (taken + attended) + FLOAT32 * heads


def _merges_again(sizes: RankSizes) -> bool:
    """Whether backward makes the input of the output projection again, from what attention keeps."""
    return sizes.recomputes_cheap_work and not (sizes.facts.halts_in_training or _attends_one_by_one(sizes))


def _attends_one_by_one(sizes: RankSizes) -> bool:
    """Whether no kernel takes all documents of a row."""
    has_kernel = sizes.value_bytes < FLOAT32 and sizes.has_fused_norms
    return sizes.separates_documents and sizes.context == 1 and not has_kernel


def _keeps_scores(sizes: RankSizes, index: int) -> bool:
    """Whether autograd keeps scores: GPUs have no kernel for float32 whose results could be joined."""
    is_joined = sizes.facts.sees_earlier_steps and index > 0 and sizes.context == 1
    return is_joined and not sizes.joins_attention


def _attended_by_products(sizes: RankSizes, index: int) -> float:
    """Values per row: the scores of all steps so far, and what their products take.

    The keys of step 0 are taken as they are; those of later steps, and the queries for them, are copies with
    a column that hides absent tokens. Every query head has keys of its own.
    """
    shape = sizes.shape
    query, key_value = shape.query_size / sizes.tensor, shape.key_value_size / sizes.tensor
    scores = shape.num_attention_heads / sizes.tensor * (index + 1) * shape.seq_length
    copied = 3 * index * query * shape.weighted_head_size("fp32") / shape.kv_channels
    repeated = 2 * query if shape.num_query_groups < shape.num_attention_heads else 0
    # Later steps take the keys themselves, not the copies.
    own = 0 if sizes.plan.is_final(index) else key_value
    return scores + query + copied + repeated + own


def _attended(sizes: RankSizes, index: int) -> float:
    """Channels per row of the fused attention's output."""
    shape = sizes.shape
    size = sizes.weighted_head_size if sizes.has_weighted_keys(index) else shape.kv_channels
    return shape.num_attention_heads * size / sizes.tensor


def _mlp(sizes: RankSizes) -> float:
    """Per row: before and after the activation; of a gated MLP also the other half and the product.

    A fused activation keeps what it is given alone.
    """
    is_gated = sizes.shape.is_gated
    num_kept = 2
    if is_gated:
        num_kept = 3 if sizes.fuses else 4
    if sizes.recomputes_cheap_work:
        num_kept = 2 if is_gated else 1
    return num_kept * sizes.value_bytes * sizes.shape.ffn_hidden_size / sizes.tensor


def _cheap_at_a_time(sizes: RankSizes, index: int) -> float:
    """Per row: the inputs of the products that add to the residual stream, as backward makes them again."""
    inner, query = (each / sizes.tensor for each in (sizes.shape.ffn_hidden_size, sizes.shape.query_size))
    is_merged_too = (
        sizes.shape.has_parallel_residual and sizes.has_weighted_keys(index) and _merges_again(sizes)
    )
    return sizes.value_bytes * (inner + (query if is_merged_too else 0))
