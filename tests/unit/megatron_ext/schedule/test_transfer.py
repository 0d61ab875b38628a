"""Rows sent between pipeline stages are bit-equal, forward and backward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_ext.methods.base import PassRows
from megatron_ext.schedule.transfer import decode, encode

HIDDEN_SIZE = 3
INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
# Numbers beside bfloat16 rows: as bfloat16 halves, the lower ones are NaN, infinite or negative zero.
AWKWARD = [0x3F807FC1, 0x3F80FF80, 0x40008000, 0x80000000, 0x7F800000, 0x7FC00001, 0x00000001, 0xFF7FFFFF]

each_dtype = pytest.mark.parametrize(
    ("dtype", "columns"), [(torch.bfloat16, 2), (torch.float32, 1), (torch.float64, 1)]
)


def bits(values: Tensor) -> Tensor:
    return values.detach().contiguous().view(INTEGERS[values.dtype])


def from_bits(patterns: list[int]) -> Tensor:
    """Float32 numbers, [R, 1]."""
    signed = [pattern - 2**32 if pattern >= 2**31 else pattern for pattern in patterns]
    return torch.tensor(signed, dtype=torch.int32).view(torch.float32).unsqueeze(-1)


def random_rows(dtype: torch.dtype) -> PassRows:
    """Four rows of two sequences, and a number beside each."""
    column = torch.randn(4, 2, dtype=torch.promote_types(dtype, torch.float32))
    column[0, 0] = -0.0
    return PassRows(rows=torch.randn(4, 2, HIDDEN_SIZE, dtype=dtype), column=column)


@each_dtype
def test_nothing_is_rounded_on_the_way(dtype: torch.dtype, columns: int) -> None:
    moving = random_rows(dtype)
    assert moving.column is not None

    sent = encode(moving)
    arrived = decode(sent, HIDDEN_SIZE)

    assert sent.dtype == dtype
    assert sent.shape == (4, 2, HIDDEN_SIZE + columns)
    assert sent.is_contiguous()
    assert arrived.column is not None
    assert arrived.column.dtype == moving.column.dtype
    assert torch.equal(bits(arrived.rows), bits(moving.rows))
    assert torch.equal(bits(arrived.column), bits(moving.column))


@given(patterns=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8))
def test_any_bits_arrive_beside_bfloat16_rows(patterns: list[int]) -> None:
    column = from_bits(patterns + AWKWARD)
    rows = torch.zeros(*column.shape, HIDDEN_SIZE, dtype=torch.bfloat16)

    arrived = decode(encode(PassRows(rows=rows, column=column)), HIDDEN_SIZE).column

    assert arrived is not None
    assert torch.equal(bits(arrived), bits(column))


@given(patterns=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8))
def test_any_bits_of_gradients_return(patterns: list[int]) -> None:
    gradient = from_bits(patterns + AWKWARD)
    column = torch.zeros_like(gradient, requires_grad=True)
    rows = torch.zeros(*column.shape, HIDDEN_SIZE, dtype=torch.bfloat16, requires_grad=True)

    arrived = decode(transferred(encode(PassRows(rows=rows, column=column))), HIDDEN_SIZE)

    assert arrived.column is not None
    (returned,) = torch.autograd.grad(arrived.column, column, gradient)
    assert torch.equal(bits(returned), bits(gradient))


def transferred(sent: Tensor) -> Tensor:
    """Return what the other stage receives: a copy, and so is the gradient that comes back."""
    return _Copies.apply(sent)  # type: ignore[no-any-return, no-untyped-call]


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, sent: Tensor) -> Tensor:
        del ctx
        return sent.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        del ctx
        assert gradient.is_contiguous(), "gloo sends no other"
        return gradient.clone()


@each_dtype
@pytest.mark.parametrize("has_column", [True, False])
def test_gradients_are_those_without_a_transfer(dtype: torch.dtype, columns: int, has_column: bool) -> None:
    del columns
    start = random_rows(dtype)
    assert start.column is not None
    leaves = [start.rows.requires_grad_(), start.column.requires_grad_()][: 1 + has_column]

    def loss(moving: PassRows) -> Tensor:
        # Transposed on purpose: the gradient that is sent back is not contiguous.
        total = moving.rows.transpose(0, 1).float().sin().square().sum()
        return total if moving.column is None else total + (moving.column.exp() * moving.rows.sum(-1)).sum()

    plain = PassRows(rows=leaves[0], column=leaves[1] if has_column else None)
    sent = decode(transferred(encode(plain)), HIDDEN_SIZE)

    expected = torch.autograd.grad(loss(plain), leaves)
    for found, wanted in zip(torch.autograd.grad(loss(sent), leaves), expected, strict=True):
        assert torch.equal(bits(found), bits(wanted))


def test_rows_alone_travel_as_they_are() -> None:
    rows = torch.randn(4, 2, HIDDEN_SIZE)

    assert torch.equal(encode(PassRows(rows=rows)), rows)
    assert decode(rows, HIDDEN_SIZE).column is None
