"""Rules that tie several settings of a run together.

A rule is a generator of problems over a run's settings. Rules read plain settings only (no properties),
because they also run on configurations in which other settings are missing or invalid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from pipeline.config.errors import ConfigProblem
from pipeline.config.suggestions import largest_common_divisor_up_to, nearest_multiples

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig

AVAILABLE_METHODS = ("vanilla", "ponderlm2", "ponderlm3")

Rule = Callable[["RunConfig"], Iterator[ConfigProblem]]


def broken_rules(config: RunConfig) -> list[ConfigProblem]:
    """Return every problem of a complete configuration."""
    return [problem for rule in RULES for problem in rule(config)]


def broken_rules_of_part(settings: SimpleNamespace) -> list[ConfigProblem]:
    """Return the problems of what is there of an incomplete configuration.

    Args:
        settings: sections as nested namespaces that hold the valid settings only.
    """
    problems: list[ConfigProblem] = []
    for rule in RULES:
        remaining = rule(cast("RunConfig", settings))
        while True:
            try:
                problems.append(next(remaining))
            except (StopIteration, AttributeError):
                # AttributeError: the rule needs a setting that is missing or invalid, and reported as such.
                break
    return problems


def _heads(config: RunConfig) -> Iterator[ConfigProblem]:
    model = config.model
    uses_default_size = model.kv_channels == model.hidden_size // model.num_attention_heads
    if model.hidden_size % model.num_attention_heads and uses_default_size:
        yield ConfigProblem(
            path="model.hidden_size",
            rule=f"must be a multiple of model.num_attention_heads ({model.num_attention_heads})",
            value=str(model.hidden_size),
            cure=f"try {nearest_multiples(model.hidden_size, model.num_attention_heads)}",
        )


def _query_groups(config: RunConfig) -> Iterator[ConfigProblem]:
    model = config.model
    if model.architecture == "gpt_neox" and model.num_query_groups != model.num_attention_heads:
        yield ConfigProblem(
            path="model.num_query_groups",
            rule=f"must equal model.num_attention_heads ({model.num_attention_heads}) for gpt_neox",
            value=str(model.num_query_groups),
            cure="leave it out, or use architecture: llama, which has grouped queries",
        )
    elif model.num_attention_heads % model.num_query_groups:
        fitting = largest_common_divisor_up_to(model.num_query_groups, [model.num_attention_heads])
        yield ConfigProblem(
            path="model.num_query_groups",
            rule=f"must divide model.num_attention_heads ({model.num_attention_heads})",
            value=str(model.num_query_groups),
            cure=f"try {fitting}",
        )


def _rotary(config: RunConfig) -> Iterator[ConfigProblem]:
    model = config.model
    num_channels = int(model.kv_channels * model.rotary_percent)
    if num_channels < 2 or num_channels % 2:
        yield ConfigProblem(
            path="model.rotary_percent",
            rule=f"must rotate an even number of the {model.kv_channels} channels of a head, at least 2",
            value=f"{model.rotary_percent} ({num_channels} channels)",
            cure="change it or model.kv_channels so that their product is even",
        )


def _positions(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.training.seq_length > config.model.max_position_embeddings:
        yield ConfigProblem(
            path="training.seq_length",
            rule=f"must be at most model.max_position_embeddings ({config.model.max_position_embeddings})",
            value=str(config.training.seq_length),
            cure=f"raise model.max_position_embeddings to {config.training.seq_length}",
        )


def _padding_token(config: RunConfig) -> Iterator[ConfigProblem]:
    token, vocab_size = config.model.padding_token_id, config.model.vocab_size
    if token is not None and vocab_size is not None and token >= vocab_size:
        yield ConfigProblem(
            path="model.padding_token_id",
            rule=f"must be a token of the vocabulary, below model.vocab_size ({vocab_size})",
            value=str(token),
            cure=f"try {vocab_size - 1}",
        )


def _method_is_built(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.ponder.method not in AVAILABLE_METHODS:
        yield ConfigProblem(
            path="ponder.method",
            rule="must be a method that this version computes",
            value=str(config.ponder.method),
            cure=f"choose {', '.join(AVAILABLE_METHODS[:-1])} or {AVAILABLE_METHODS[-1]}",
        )


def _vanilla_does_not_ponder(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.ponder.method != "vanilla":
        return
    settings = {
        "num_latent_thoughts": config.ponder.num_latent_thoughts,
        "num_jacobi_iterations": config.ponder.num_jacobi_iterations,
    }
    for name, value in settings.items():
        if value != 0:
            yield ConfigProblem(
                path=f"ponder.{name}",
                rule="must be 0 for ponder.method vanilla, which makes one pass",
                value=str(value),
                cure="leave it out, or choose ponderlm2 or ponderlm3",
            )


def _random_jacobi(config: RunConfig) -> Iterator[ConfigProblem]:
    bounds = config.ponder.random_jacobi_iterations
    if bounds is None:
        return
    if bounds[0] > bounds[1]:
        yield ConfigProblem(
            path="ponder.random_jacobi_iterations",
            rule="must be [lowest, highest]",
            value=f"[{bounds[0]}, {bounds[1]}]",
            cure=f"write [{bounds[1]}, {bounds[0]}]",
        )
    if config.ponder.num_latent_thoughts == 0:
        yield ConfigProblem(
            path="ponder.random_jacobi_iterations",
            rule="needs latent thoughts to refine (ponder.num_latent_thoughts above 0)",
            value=f"[{bounds[0]}, {bounds[1]}] with 0 thoughts",
            cure="leave it out",
        )


def _penalty_ramp(config: RunConfig) -> Iterator[ConfigProblem]:
    start, end = config.ponder.penalty_ramp
    if start > end:
        yield ConfigProblem(
            path="ponder.penalty_ramp",
            rule="must be [first iteration, last iteration]",
            value=f"[{start}, {end}]",
            cure=f"write [{end}, {start}]",
        )


def _router_size(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.ponder.method == "ponderlm3" and config.model.hidden_size // 4 == 0:
        yield ConfigProblem(
            path="model.hidden_size",
            rule="must be at least 4 for ponderlm3, whose router has a quarter of it",
            value=str(config.model.hidden_size),
            cure="try 64",
        )


def _interpolation(config: RunConfig) -> Iterator[ConfigProblem]:
    ponder, vocab_size = config.ponder, config.model.vocab_size
    if ponder.interpolation_use_topk and not ponder.interpolation:
        yield ConfigProblem(
            path="ponder.interpolation_use_topk",
            rule="needs ponder.interpolation",
            value="true without it",
            cure="set ponder.interpolation to true, or leave this out",
        )
    if ponder.interpolation_use_topk and vocab_size is not None and ponder.interpolation_topk > vocab_size:
        yield ConfigProblem(
            path="ponder.interpolation_topk",
            rule=f"must be at most model.vocab_size ({vocab_size})",
            value=str(ponder.interpolation_topk),
            cure=f"try {min(100, vocab_size)}",
        )
    if ponder.interpolation and ponder.method == "vanilla":
        yield ConfigProblem(
            path="ponder.interpolation",
            rule="needs a method with latent thoughts",
            value="true with ponder.method vanilla",
            cure="leave it out, or choose ponderlm2 or ponderlm3",
        )


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


def _pipeline_parallel(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.parallel.pipeline != 1:
        yield ConfigProblem(
            path="parallel.pipeline",
            rule="must be 1: this version has no pipeline parallelism",
            value=str(config.parallel.pipeline),
            cure="use parallel.tensor and parallel.data",
        )


def _sequence_parallel(config: RunConfig) -> Iterator[ConfigProblem]:
    if not config.parallel.sequence_parallel:
        return
    tensor = config.parallel.tensor
    if tensor == 1:
        yield ConfigProblem(
            path="parallel.sequence_parallel",
            rule="needs tensor parallelism (parallel.tensor of at least 2)",
            value="true with parallel.tensor 1",
            cure="set it to false, or parallel.tensor to 2",
        )
    # Every pass has a multiple of seq_length rows, so rows divide wherever the first pass's do.
    if config.training.seq_length % tensor:
        yield ConfigProblem(
            path="training.seq_length",
            rule=f"must be a multiple of parallel.tensor ({tensor}) with parallel.sequence_parallel",
            value=str(config.training.seq_length),
            cure=f"try {nearest_multiples(config.training.seq_length, tensor)}",
        )


def _global_batch(config: RunConfig) -> Iterator[ConfigProblem]:
    training, data = config.training, config.parallel.data
    portion = training.micro_batch_size * data
    if training.global_batch_size % portion:
        yield ConfigProblem(
            path="training.global_batch_size",
            rule=f"must be a multiple of training.micro_batch_size x parallel.data "
            f"({training.micro_batch_size} x {data} = {portion})",
            value=str(training.global_batch_size),
            cure=f"try {nearest_multiples(training.global_batch_size, portion)}",
        )


def _overlap(config: RunConfig) -> Iterator[ConfigProblem]:
    if not config.parallel.overlap_grad_reduce:
        return
    reasons = []
    if config.parallel.recompute != "none":
        reasons.append(f"parallel.recompute {config.parallel.recompute}")
    if config.ponder.random_jacobi_iterations is not None:
        reasons.append("ponder.random_jacobi_iterations")
    if reasons:
        yield ConfigProblem(
            path="parallel.overlap_grad_reduce",
            rule="must be false where the number of backward passes over a weight varies",
            value=f"true with {' and '.join(reasons)}",
            cure="set it to false",
        )


def _learning_rate(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.optimizer.min_lr > config.optimizer.lr:
        yield ConfigProblem(
            path="optimizer.min_lr",
            rule=f"must be at most optimizer.lr ({config.optimizer.lr})",
            value=str(config.optimizer.min_lr),
            cure=f"try {config.optimizer.lr / 10}",
        )


def _warmup(config: RunConfig) -> Iterator[ConfigProblem]:
    optimizer = config.optimizer
    decay_iters = optimizer.lr_decay_iters or config.training.train_iters
    limit = min(decay_iters, config.training.train_iters)
    if optimizer.lr_warmup_iters >= limit:
        yield ConfigProblem(
            path="optimizer.lr_warmup_iters",
            rule=f"must be below training.train_iters and optimizer.lr_decay_iters ({limit})",
            value=str(optimizer.lr_warmup_iters),
            cure=f"try {limit // 10}",
        )


def _warmup_stable_decay(config: RunConfig) -> Iterator[ConfigProblem]:
    optimizer = config.optimizer
    if optimizer.lr_decay_style != "wsd":
        return
    decay_end = optimizer.lr_decay_iters or config.training.train_iters
    room = decay_end - optimizer.lr_warmup_iters
    if optimizer.wsd_decay_iters is None or optimizer.wsd_decay_iters > room:
        yield ConfigProblem(
            path="optimizer.wsd_decay_iters",
            rule=f"must be given for lr_decay_style wsd and fit behind the warm-up (at most {room})",
            value="not given" if optimizer.wsd_decay_iters is None else str(optimizer.wsd_decay_iters),
            cure=f"try {max(1, room // 5)}",
        )


def _splits(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.data.heldout_split == config.data.train_split:
        yield ConfigProblem(
            path="data.heldout_split",
            rule="must differ from data.train_split: text that is trained on measures nothing",
            value=repr(config.data.heldout_split),
            cure="name another split of the manifest",
        )


RULES: tuple[Rule, ...] = (
    _heads,
    _query_groups,
    _rotary,
    _positions,
    _padding_token,
    _method_is_built,
    _vanilla_does_not_ponder,
    _random_jacobi,
    _penalty_ramp,
    _router_size,
    _interpolation,
    _tensor_parallel,
    _pipeline_parallel,
    _sequence_parallel,
    _global_batch,
    _overlap,
    _learning_rate,
    _warmup,
    _warmup_stable_decay,
    _splits,
)
