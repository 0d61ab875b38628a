"""Tiny pondering models with random weights, batches for them, and the sequential oracle on their weights."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.decoding import BatchDecoder
from megatron_ext.model.config import (
    Architecture,
    Initialization,
    PonderTransformerConfig,
    architecture_settings,
    host_settings,
    initialization_settings,
)
from megatron_ext.model.micro_batch import ModelOutput, TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.ponder.config import (
    Method,
    Mixture,
    Penalty,
    PonderConfig,
    ReadoutFrom,
    RouterForm,
    RouterKind,
    RouterStart,
    TrainingMask,
)
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from megatron_ext.ponder.reference.backbone import Backbone
from megatron_ext.ponder.reference.method import TokenResult
from megatron_ext.ponder.reference.sequential import SequentialOracle
from megatron_ext.weights import load_weights, whole_tensors

VOCAB_SIZE = 43
PADDED_VOCAB_SIZE = 48
HIDDEN_SIZE = 32

METHODS = tuple(Method)
BACKBONES = tuple(Architecture)
# The kinds of activation recompute, as settings of the backbone.
RECOMPUTE: dict[str, dict[str, Any]] = {
    "per_pass": {"recompute_passes": True},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}

# PonderLM-3 as its authors' research code computes it, as settings of the method.
AUTHORS: dict[str, Any] = {
    "form": RouterForm(
        router=RouterKind.LINEAR,
        router_start=RouterStart.RANDOM,
        mask_in_training=TrainingMask.HARD,
        attention_scale_extra=8,
        pre_pass=True,
        router_damping=0.1,
        readout_from=ReadoutFrom.LAST_SWEEP,
    ),
    "penalty": Penalty.ACCURACY_BOTTOM,
}

each_method = pytest.mark.parametrize("method", METHODS)
each_backbone = pytest.mark.parametrize("architecture", BACKBONES)


def each_model(test: Any) -> Any:
    """Parametrize a test with every method on every backbone."""
    return each_method(each_backbone(test))


def tiny_model(
    groups: ParallelGroups,
    method: Method | str,
    architecture: Architecture | str = Architecture.LLAMA,
    *,
    num_latent_thoughts: int = 2,
    dtype: torch.dtype = torch.float64,
    seed: int = 1,
    ponder: dict[str, Any] | None = None,
    **settings: Any,
) -> PonderModel:
    """Build a model of two layers in which every weight matters and tokens halt at every step.

    Args:
        groups: a layout of one rank.
        method, architecture: which; Llama has two query heads per key/value head.
        num_latent_thoughts: K, ignored for vanilla.
        dtype: of the weights.
        seed: of the weights.
        ponder: further settings of the method.
        settings: further settings of the backbone.
    """
    method, architecture = Method(method), Architecture(architecture)
    config = PonderConfig(
        method=method,
        num_latent_thoughts=0 if method is Method.VANILLA else num_latent_thoughts,
        **{**_ponder_defaults(method), **(ponder or {})},
    )
    is_neox = architecture is Architecture.GPT_NEOX
    sizes: dict[str, Any] = {"num_layers": 2, "hidden_size": HIDDEN_SIZE, "num_attention_heads": 4}
    sizes |= {"ffn_hidden_size": 52, "num_query_groups": 4 if is_neox else 2, "vocab_size": VOCAB_SIZE}
    sizes |= {"padded_vocab_size": PADDED_VOCAB_SIZE, "rotary_percent": 0.5 if is_neox else 1.0}
    initialization = initialization_settings(
        Initialization.MEGATRON,
        vocab_size=VOCAB_SIZE,
        architecture=architecture,
        std=0.02,
        hidden_size=HIDDEN_SIZE,
        num_layers=2,
        num_slots=config.num_slots,
    )
    everything = sizes | architecture_settings(architecture) | initialization | host_settings() | settings
    model = PonderModel(
        PonderTransformerConfig(architecture=architecture, ponder=config, params_dtype=dtype, **everything),
        groups.pg_collection,
    )
    load_weights(model, random_weights(model, seed))
    return model


def _ponder_defaults(method: Method) -> dict[str, Any]:
    is_vertical = method in (Method.PONDERLM, Method.ADAPONDERLM)
    return {
        "max_jacobi_iterations": 40,
        "pruning_threshold": 0.35 if method is Method.ADAPTIVE_LATENT_COT else 1e-2,
        "mixture": Mixture.SOFTMAX if is_vertical else Mixture.HIDDEN,
        # The first row beyond the vocabulary.
        "pause_token_id": VOCAB_SIZE if method is Method.PAUSE else None,
    }


def random_weights(model: PonderModel, seed: int) -> dict[str, Tensor]:
    """Draw every tensor of a model, norms and biases included, in the order of names.

    The logits of router and gates get a standard deviation of several units over tokens, so that tail masses
    and gate values lie on both sides of every threshold.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, like: Tensor) -> Tensor:
        noise = torch.randn(like.shape, dtype=torch.float64, generator=generator)
        if "norm" in name and name.endswith("weight"):
            noise = 1 + 0.1 * noise
        elif name == "ponder.router.2.weight":
            noise = 4 * noise
        elif name.startswith("ponder.gates") and name.endswith("2.weight"):
            noise = 1.5 * noise
        elif name == "ponder.router.weight":
            noise = 0.6 * noise
        elif name.startswith("ponder"):
            noise = noise / like.shape[-1] ** 0.5
        else:
            noise = 0.15 * noise
        return noise.to(like.dtype)

    shapes = whole_tensors(model, lambda parameter: parameter)
    return {name: draw(name, shapes[name]) for name in sorted(shapes)}


def batch_of(
    tokens: Tensor, document_ids: Tensor | None = None, *, restart_positions: bool = True
) -> TokenBatch:
    """Label every token with its successor in the document.

    Args:
        tokens: [B, S].
        document_ids: [B, S], -1 at padding; None for one document per row.
        restart_positions: count positions from 0 in every document, not from the start of the row.
    """
    documents = torch.zeros_like(tokens) if document_ids is None else document_ids
    labels = torch.full_like(tokens, IGNORED_LABEL)
    is_inner = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] != PADDING_DOCUMENT)
    labels[:, :-1] = torch.where(is_inner, tokens[:, 1:], IGNORED_LABEL)
    positions = torch.zeros_like(tokens)
    for index in range(1, tokens.shape[1]):
        runs_on = (documents[:, index] == documents[:, index - 1]) | (not restart_positions)
        positions[:, index] = torch.where(runs_on, positions[:, index - 1] + 1, 0)
    return TokenBatch(tokens=tokens, labels=labels, position_ids=positions, document_ids=documents)


def random_tokens(batch: int = 2, length: int = 9, *, seed: int = 2) -> Tensor:
    """Return token ids, [B, S]."""
    return torch.randint(VOCAB_SIZE, (batch, length), generator=torch.Generator().manual_seed(seed))


def halting_tokens(length: int = 9) -> Tensor:
    """[1, S] ids, at most 9, of which even the first 7 differ in their steps in every model that halts."""
    return random_tokens(1, 9, seed=26)[:, :length]


def changed(tokens: Tensor, positions: slice, *, row: int | slice = slice(None)) -> Tensor:
    """Return a copy with other tokens at some positions of some rows."""
    tokens = tokens.clone()
    tokens[row, positions] = (tokens[row, positions] + 1) % VOCAB_SIZE
    return tokens


def observed(
    model: PonderModel, batch: TokenBatch, *, num_jacobi_iterations: int = 2, prune: bool = False
) -> tuple[ModelOutput, dict[str, Tensor]]:
    """Run a forward and return its output and everything that it shows to observers, graphs kept.

    The logits are copied, because the loss works on them in place.
    """
    seen: dict[str, Tensor] = {}
    output = model(
        batch,
        num_jacobi_iterations=num_jacobi_iterations,
        prune=prune,
        observe=lambda name, value: seen.update(
            {name: value.detach().clone() if name == "logits" else value}
        ),
    )
    return output, seen


def mean_loss(output: ModelOutput, batch: TokenBatch, *, penalty_weight: float = 0.0) -> Tensor:
    """Return the mean cross-entropy over labelled tokens plus the weighted penalty."""
    loss = output.token_losses.sum() / (batch.labels != IGNORED_LABEL).sum()
    if output.step_losses is not None:
        loss = loss + output.step_losses.sum() / (batch.labels != IGNORED_LABEL).sum()
    if output.regularizer is not None:
        loss = loss + output.regularizer
    return loss if output.penalty is None else loss + penalty_weight * output.penalty


def results_by_token(
    model: PonderModel, batch: TokenBatch, *, num_jacobi_iterations: int = 2
) -> dict[str, Tensor]:
    """What every pass made of every token, each [S, n, B, H], and the logits, [S, 1, B, V]."""
    with torch.no_grad():
        _, seen = observed(model, batch, num_jacobi_iterations=num_jacobi_iterations)
    num_tokens = batch.tokens.shape[1]
    passes = {name: value for name, value in seen.items() if name.startswith("stack_outputs/")}
    assert len(passes) == model.ponder.plan(num_jacobi_iterations).num_passes
    return {
        name: value.unflatten(0, (num_tokens, -1))
        for name, value in {**passes, "logits": seen["logits"]}.items()
    }


def gradients_of(
    model: PonderModel,
    batch: TokenBatch,
    *,
    num_jacobi_iterations: int = 2,
    penalty_weight: float = 0.3,
    **settings: Any,
) -> dict[str, Tensor]:
    """Return the gradients of the loss by parameter, as in training, and remove them from the model."""
    output = model(batch, num_jacobi_iterations=num_jacobi_iterations, **settings)
    mean_loss(output, batch, penalty_weight=penalty_weight).backward()
    gradients = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return gradients


def decode_one_by_one(model: PonderModel, tokens: Sequence[int]) -> tuple[Tensor, list[int], BatchDecoder]:
    """Decode a sequence on its own: logits, [S, V], steps of every token, and the decoder afterwards."""
    decoder = BatchDecoder(model, num_sequences=1, max_tokens=len(tokens))
    decoded = [decoder.consume([0], [token]) for token in tokens]
    return torch.cat([one.logits for one in decoded]), [int(one.steps) for one in decoded], decoder


def oracle_backbone(model: PonderModel, weights: dict[str, Tensor] | None = None) -> Backbone:
    """Return the layers of the oracle with copies of the model's weights, or with others of their names."""
    config = model.config
    return Backbone(
        is_neox=config.architecture is Architecture.GPT_NEOX,
        weights=weights or whole_tensors(model, lambda parameter: parameter.clone()),
        num_layers=config.num_layers,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_query_groups,
        rotary_size=config.rotary_size,
        rotary_base=config.rotary_base,
        norm_epsilon=config.layernorm_epsilon,
    )


def oracle_results(
    model: PonderModel, tokens: Sequence[int], *, weights: dict[str, Tensor] | None = None, **settings: Any
) -> list[TokenResult]:
    """Let the oracle consume a sequence with the weights of the model, or with others by the same names.

    Args:
        model: decides sizes and method.
        tokens: ids.
        weights: None for the model's own.
        settings: further ones of the oracle.
    """
    oracle = SequentialOracle(oracle_backbone(model, weights), model.config.ponder, **settings)
    return [oracle.consume(int(token), position) for position, token in enumerate(tokens)]
