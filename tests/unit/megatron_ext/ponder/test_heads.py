"""One function from fused products to what kernels read, against separate operations on the same numbers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.ponder.attention import extended_attention, key_weighted_attention
from megatron_ext.ponder.heads import key_columns, merged_heads, rotary_turns, rotated_heads
from megatron_ext.ponder.rotary import rotary_angles

# R, B, G, A / G, d
ROWS, BATCH, GROUPS, SHARE, HEAD_SIZE = 5, 2, 2, 3, 8


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(
        ROWS, BATCH, GROUPS, (SHARE + 2) * HEAD_SIZE, generator=generator, dtype=torch.float64
    )
    log_weight = -torch.rand(BATCH, ROWS, generator=generator, dtype=torch.float64)
    wide = torch.promote_types(dtype, torch.float32)
    return mixed.to(dtype).requires_grad_(), log_weight.to(wide).requires_grad_()


def angles(rotary_size: int) -> Tensor:
    positions = torch.arange(ROWS).expand(BATCH, ROWS)
    return rotary_angles(positions, num_slots=1, rotary_size=rotary_size, base=100.0, dtype=torch.float64)


def one_by_one(mixed: Tensor, log_weight: Tensor | None, rotary_size: int, scale_extra: int) -> Tensor:
    """Split, rotate and attend with an operation for each."""
    heads = mixed.unflatten(-1, (SHARE + 2, HEAD_SIZE))
    query, key, value = heads[..., :SHARE, :].flatten(2, 3), heads[..., SHARE, :], heads[..., SHARE + 1, :]

    def rotate(x: Tensor) -> Tensor:
        turned, rest = x[..., :rotary_size], x[..., rotary_size:]
        first, second = turned.chunk(2, dim=-1)
        half_turned = torch.cat([-second, first], dim=-1)
        of_pass = angles(rotary_size).to(torch.promote_types(x.dtype, torch.float32))
        turned = turned * of_pass.cos().to(x.dtype) + half_turned * of_pass.sin().to(x.dtype)
        return torch.cat([turned, rest], dim=-1)

    by_head = [x.permute(1, 2, 0, 3) for x in (rotate(query), rotate(key), value)]
    output = key_weighted_attention(*by_head, log_weight, scale_extra=scale_extra)
    return output.permute(2, 0, 1, 3).flatten(2)


def in_one(
    mixed: Tensor, log_weight: Tensor | None, rotary_size: int, scale_extra: int, fuses: bool = False
) -> Tensor:
    of_pass = angles(rotary_size).to(torch.promote_types(mixed.dtype, torch.float32))
    scaled_size = HEAD_SIZE + scale_extra
    columns = None if log_weight is None else key_columns(log_weight, scaled_size, mixed.dtype)
    heads = rotated_heads(
        mixed,
        rotary_turns(of_pass, mixed.dtype),
        log_weight,
        columns,
        head_size=HEAD_SIZE,
        scale_extra=scale_extra,
        fuses=fuses,
    )
    by_head = [x.permute(1, 2, 0, 3) for x in heads]
    return merged_heads(extended_attention(*by_head, scaled_size=scaled_size), HEAD_SIZE, fuses=fuses)


def with_gradients(way: Any, mixed: Tensor, log_weight: Tensor | None, *arguments: int) -> list[Tensor]:
    output = way(mixed, log_weight, *arguments)
    along = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output).to(output.dtype)
    used = [mixed] if log_weight is None else [mixed, log_weight]
    return [output, *torch.autograd.grad(output, used, along)]


@pytest.mark.parametrize("fuses", [False, True])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize(("rotary_size", "scale_extra"), [(HEAD_SIZE, 0), (4, 0), (2, 8)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_values_and_gradients_are_those_of_separate_operations(
    dtype: torch.dtype, tolerance: float, rotary_size: int, scale_extra: int, is_weighted: bool, fuses: bool
) -> None:
    mixed, log_weight = inputs(dtype)
    weight = log_weight if is_weighted else None

    found = with_gradients(in_one, mixed, weight, rotary_size, scale_extra, fuses)
    wanted = with_gradients(one_by_one, mixed, weight, rotary_size, scale_extra)

    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert float((one - other).abs().max()) <= tolerance * max(float(other.abs().max()), 1.0)


@pytest.mark.parametrize("fuses", [False, True])
def test_gradients_are_those_of_finite_differences(fuses: bool) -> None:
    mixed, log_weight = inputs()

    assert torch.autograd.gradcheck(lambda a, b: in_one(a, b, 4, 0, fuses), (mixed, log_weight))


def test_turns_are_cosines_and_sines_of_one_half() -> None:
    turns = rotary_turns(angles(4), torch.float64)

    assert turns.shape == (2, ROWS, BATCH, 1, 2)
    torch.testing.assert_close(turns[0, 3, 0, 0], torch.tensor([math.cos(3), math.cos(0.3)]).double())
