"""Rules on the parallel layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.errors import ConfigProblem, as_written
from pipeline.config.messages import largest_common_divisor_up_to, nearest_multiples

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


def even_stages(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Return the layers of each pipeline stage, as even as possible; the first stages hold the remainder."""
    each, left = divmod(num_layers, num_stages)
    return tuple(each + (stage < left) for stage in range(num_stages))


def _tensor_parallel(config: RunConfig) -> Iterator[ConfigProblem]:
    model, tensor = config.model, config.parallel.tensor
    sizes = {
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "ffn_hidden_size": model.ffn_hidden_size,
    }
    undivided = [f"model.{name} ({size})" for name, size in sizes.items() if size % tensor]
    if undivided:
        yield ConfigProblem(
            path="parallel.tensor",
            rule=f"must divide {', '.join(undivided)}",
            value=str(tensor),
            cure=f"try {largest_common_divisor_up_to(tensor, sizes.values())}",
        )


def _stages(config: RunConfig) -> Iterator[ConfigProblem]:
    num_layers, pipeline = config.model.num_layers, config.parallel.pipeline
    if pipeline > num_layers:
        yield ConfigProblem(
            path="parallel.pipeline",
            rule=f"must be at most model.num_layers ({num_layers}): every pipeline stage needs a layer",
            value=str(pipeline),
            cure=f"try {num_layers}",
        )


def _layers_per_stage(config: RunConfig) -> Iterator[ConfigProblem]:
    layers, num_layers, pipeline = (
        config.parallel.layers_per_stage,
        config.model.num_layers,
        config.parallel.pipeline,
    )
    if layers is None or pipeline > num_layers:
        return
    if len(layers) != pipeline:
        rule = f"must have one number for each pipeline stage of parallel.pipeline ({pipeline})"
    elif sum(layers) != num_layers:
        rule = f"must add up to model.num_layers ({num_layers})"
    else:
        return
    yield ConfigProblem(
        path="parallel.layers_per_stage",
        rule=rule,
        value=as_written(layers),
        cure=f"try {as_written(even_stages(num_layers, pipeline))}",
    )


def _sequence_parallel(config: RunConfig) -> Iterator[ConfigProblem]:
    if not config.parallel.sequence_parallel:
        return
    tensor = config.parallel.tensor
    if tensor == 1:
        yield ConfigProblem(
            path="parallel.sequence_parallel",
            rule="requires parallel.tensor of at least 2",
            value="true with parallel.tensor 1",
            cure="set it to false, or parallel.tensor to 2",
        )
    # The rows of every pass are a multiple of seq_length, so it suffices that the first pass's divide.
    if config.parallel.context == 1 and config.training.seq_length % tensor:
        yield ConfigProblem(
            path="training.seq_length",
            rule=f"must be a multiple of parallel.tensor ({tensor}) with parallel.sequence_parallel",
            value=str(config.training.seq_length),
            cure=f"try {nearest_multiples(config.training.seq_length, tensor)}",
        )


def _context_parallel(config: RunConfig) -> Iterator[ConfigProblem]:
    parallel, length = config.parallel, config.training.seq_length
    if parallel.context == 1:
        return
    # A rank holds two chunks, and with sequence parallelism its tensor-parallel ranks share their tokens.
    sharing = parallel.tensor if parallel.sequence_parallel else 1
    portion = parallel.context * math.lcm(2, sharing)
    if length % portion:
        rule = f"must be a multiple of 2 x parallel.context ({2 * parallel.context})"
        if sharing > 1:
            rule += (
                f", and with parallel.sequence_parallel of parallel.context x parallel.tensor "
                f"({parallel.context * sharing})"
            )
        yield ConfigProblem(
            path="training.seq_length",
            rule=rule,
            value=str(length),
            cure=f"try {nearest_multiples(length, portion)}",
        )


def _watchdog(config: RunConfig) -> Iterator[ConfigProblem]:
    timeout, watchdog = config.parallel.timeout_seconds, config.parallel.watchdog_seconds
    if watchdog >= timeout:
        yield ConfigProblem(
            path="parallel.watchdog_seconds",
            rule=f"must be below parallel.timeout_seconds ({timeout}), else collectives time out first",
            value=str(watchdog),
            cure=f"try {timeout // 2}, or remove it",
        )


def _global_batch(config: RunConfig) -> Iterator[ConfigProblem]:
    training, parallel = config.training, config.parallel
    factors = {"training.micro_batch_size": training.micro_batch_size, "parallel.data": parallel.data}
    if parallel.pipeline > 1:
        # The interleaved schedule works on groups of as many micro-batches as there are pipeline stages.
        factors["parallel.pipeline"] = parallel.pipeline
    portion = math.prod(factors.values())
    if training.global_batch_size % portion:
        product = " x ".join(str(factor) for factor in factors.values())
        yield ConfigProblem(
            path="training.global_batch_size",
            rule=f"must be a multiple of {' x '.join(factors)} ({product} = {portion})",
            value=str(training.global_batch_size),
            cure=f"try {nearest_multiples(training.global_batch_size, portion)}",
        )


def _overlap(config: RunConfig) -> Iterator[ConfigProblem]:
    if not config.parallel.overlap_grad_reduce:
        return
    ponder, parallel = config.ponder, config.parallel
    reasons = []
    # In one graph, autograd accumulates all uses of a weight before it reports the gradient. Passes that run
    # on pipeline stages or are recomputed report it once each, and Megatron would reduce after the first.
    if ponder.num_latent_thoughts > 0 and not ponder.method.has_one_pass:
        if parallel.recomputes_layers:
            reasons.append(f"parallel.recompute {parallel.recompute}")
        if parallel.pipeline > 1:
            reasons.append(f"parallel.pipeline {parallel.pipeline}")
    if ponder.freeze_backbone_tokens:
        reasons.append(f"ponder.freeze_backbone_tokens {ponder.freeze_backbone_tokens}")
    if reasons:
        yield ConfigProblem(
            path="parallel.overlap_grad_reduce",
            rule="must be false if a weight's gradient arrives in several parts or not at all",
            value=f"true with {' and '.join(reasons)}",
            cure="set it to false",
        )


PARALLEL_RULES = (
    _tensor_parallel,
    _stages,
    _layers_per_stage,
    _sequence_parallel,
    _context_parallel,
    _global_batch,
    _watchdog,
    _overlap,
)
