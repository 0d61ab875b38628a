"""Self-test of the fused functions in the sizes of a model, against the operations they replace."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_ext.model.config import PonderTransformerConfig
from megatron_ext.model.fused_layers import biased_gelu, gated_silu, normed_beside, sum_with_biases
from megatron_ext.model.kernels import error_ratio
from megatron_ext.parallel.vocabulary_in_parts import cross_entropy_in_place, mix_in_parts
from megatron_ext.ponder.config import Mixture
from megatron_ext.ponder.heads import key_columns, merged_heads, rotary_turns, rotated_heads
from megatron_ext.ponder.rotary import rotary_angles

# Few, because compiled functions serve any number of rows; and of what only products see, few channels.
_NUM_ROWS, _NUM_CHANNELS = 16, 32

_Function = Callable[..., tuple[Tensor, ...]]


def check_fused(
    config: PonderTransformerConfig, micro_batch_size: int, device: torch.device
) -> dict[str, float]:
    """Run every fused function of a model forward and backward on random rows.

    Args:
        config: of the model; its own `fuses` has no effect.
        micro_batch_size: B.
        device: where.
    Returns:
        By function, the largest distance of a value or gradient to float64, over that of separate operations
        in the model's precision.
    """
    generator = torch.Generator().manual_seed(1)
    rows = (_NUM_ROWS, micro_batch_size)
    errors = {}
    for name, fused, plain, shapes in _cases(config, rows, device):
        # Drawn on the host, so that every device computes the same.
        drawn = [torch.randn(*shape, generator=generator) for shape in shapes]
        inputs = [each.to(device, config.params_dtype) for each in drawn]
        exact = _outcome(plain, [each.double() for each in inputs])
        usual, found = _outcome(plain, inputs), _outcome(fused, inputs)
        errors[name] = max(map(error_ratio, found, usual, exact))
    return errors


def _cases(
    config: PonderTransformerConfig, rows: tuple[int, int], device: torch.device
) -> Iterator[tuple[str, _Function, _Function, list[tuple[int, ...]]]]:
    """Yield name, fused function, plain one, and the shapes of what both are given."""
    tensor = config.tensor_model_parallel_size
    assert config.ffn_hidden_size is not None
    assert config.num_query_groups is not None
    hidden, inner = (*rows, config.hidden_size), config.ffn_hidden_size // tensor
    vector = (config.hidden_size,)
    if config.gated_linear_unit:
        yield "gated activation", _one(gated_silu), _one(_gated_silu), [(*rows, 2 * inner)]
        yield "norm", _norm(config, is_fused=True), _norm(config, is_fused=False), [hidden, vector]
    else:
        yield "activation", _one(biased_gelu), _one(_gelu), [(*rows, inner), (inner,)]
        yield "norm", _norm(config, is_fused=True), _norm(config, is_fused=False), [hidden, vector, vector]
    biases = [vector, vector] if config.add_bias_linear else []
    yield "sum", _one(sum_with_biases), _one(lambda *given: sum(given)), [hidden, hidden, *biases]
    groups, heads = config.num_query_groups // tensor, config.num_attention_heads // tensor
    mixed = (*rows, groups, (heads // groups + 2) * config.kv_channels)
    heads_of = _heads(config, rows, device)
    yield "heads", heads_of(True), heads_of(False), [mixed, (rows[1], rows[0])]
    partition = config.padded_vocab_size // tensor
    num_real = min(config.vocab_size, partition)
    loss_of = _losses(num_real, rows, device)
    yield "cross-entropy", loss_of(True), loss_of(False), [(*rows, partition)]
    if config.ponder.method.facts.mixes(config.ponder.mixture):
        mixed_by, weight = _mixture(config, num_real), (partition, _NUM_CHANNELS)
        yield "mixture", mixed_by(True), mixed_by(False), [(*rows, _NUM_CHANNELS), weight, weight]


def _one(function: Callable[..., Tensor]) -> _Function:
    return lambda *given: (function(*given),)


def _gated_silu(inner: Tensor) -> Tensor:
    gate, linear = inner.chunk(2, dim=-1)
    return functional.silu(gate) * linear


def _gelu(inner: Tensor, bias: Tensor) -> Tensor:
    return functional.gelu(inner + bias)


def _norm(config: PonderTransformerConfig, *, is_fused: bool) -> _Function:
    kind = nn.LayerNorm if config.normalization == "LayerNorm" else nn.RMSNorm

    def run(residual: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        norm = kind(config.hidden_size, eps=config.layernorm_epsilon, device=residual.device)
        for name, given in zip(("weight", "bias"), parameters, strict=False):
            # In the place of a parameter, so that its gradient reaches what was given.
            del norm._parameters[name]
            setattr(norm, name, given)
        return normed_beside(residual, norm) if is_fused else (residual, norm(residual))

    return run


def _heads(
    config: PonderTransformerConfig, rows: tuple[int, int], device: torch.device
) -> Callable[[bool], _Function]:
    positions = torch.arange(rows[0], device=device).expand(rows[1], rows[0])
    angles = rotary_angles(
        positions, num_slots=1, rotary_size=config.rotary_size, base=config.rotary_base, dtype=torch.float32
    )
    scale_extra, head_size = config.ponder.form.attention_scale_extra, config.kv_channels
    assert head_size is not None

    def way(fuses: bool) -> _Function:
        def run(mixed: Tensor, log_weight: Tensor) -> tuple[Tensor, ...]:
            log_weight = -log_weight.abs().to(torch.promote_types(mixed.dtype, torch.float32))
            heads = rotated_heads(
                mixed,
                rotary_turns(angles, mixed.dtype),
                log_weight,
                key_columns(log_weight, head_size + scale_extra, mixed.dtype),
                head_size=head_size,
                scale_extra=scale_extra,
                fuses=fuses,
            )
            merged = merged_heads(heads[0].permute(1, 2, 0, 3), head_size, fuses=fuses)
            return (*(each[..., : head_size + 1] for each in heads), merged)

        return run

    return way


@dataclass(frozen=True, slots=True)
class _Alone:
    """The axis of a rank that has the whole vocabulary."""

    rank: int = 0
    size: int = 1

    def _same(self, values: Tensor) -> Tensor:
        return values

    to_partial_use = from_partial_sums = sum_over_ranks = max_over_ranks = gather_last_dim = _same


def _losses(num_real: int, rows: tuple[int, int], device: torch.device) -> Callable[[bool], _Function]:
    targets = torch.arange(rows[0] * rows[1], device=device).view(rows) % num_real

    def way(fuses: bool) -> _Function:
        def run(logits: Tensor) -> tuple[Tensor]:
            # A copy, because backward works in place.
            hidden = logits.clone()
            hidden[..., num_real:] = float("-inf")
            if fuses:
                return (cross_entropy_in_place(hidden, targets, _Alone()),)
            wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
            return (functional.cross_entropy(wide.movedim(-1, 1), targets, reduction="none"),)

        return run

    return way


def _mixture(config: PonderTransformerConfig, num_real: int) -> Callable[[bool], _Function]:
    ponder = config.ponder
    topk = min(ponder.mixture_top_k, num_real) if ponder.mixture is Mixture.TOP_K else None
    temperature = ponder.softmax_temperature

    def plain(rows: Tensor, head: Tensor, embedding: Tensor) -> tuple[Tensor]:
        logits = functional.linear(rows, head)[..., :num_real]
        logits = logits.to(torch.promote_types(rows.dtype, torch.float32)) / temperature
        if topk is not None:
            least = logits.detach().topk(topk, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        return (torch.softmax(logits, dim=-1).to(rows.dtype) @ embedding[:num_real],)

    def way(fuses: bool) -> _Function:
        return plain if not fuses else in_parts

    def in_parts(rows: Tensor, head: Tensor, embedding: Tensor) -> tuple[Tensor]:
        mixed = mix_in_parts(
            rows,
            head,
            embedding,
            num_real=num_real,
            topk=topk,
            axis=_Alone(),
            temperature=temperature,
        )
        return (mixed,)

    return way


def _outcome(function: _Function, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return values and gradients along a direction in which no two places are alike."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    results = function(*leaves)
    along = [
        torch.linspace(-1, 2, each.numel(), device=each.device, dtype=each.dtype).view_as(each)
        for each in results
    ]
    return [*(each.detach() for each in results), *torch.autograd.grad(results, leaves, along)]
