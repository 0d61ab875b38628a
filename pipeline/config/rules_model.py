"""Rules on the sizes of the backbone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.errors import ConfigProblem
from pipeline.config.messages import largest_common_divisor_up_to, nearest_multiples

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


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
            cure="remove it, or use architecture: llama, which supports grouped queries",
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


MODEL_RULES = (_heads, _query_groups, _rotary, _positions, _padding_token)
