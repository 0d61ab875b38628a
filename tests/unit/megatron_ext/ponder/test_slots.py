import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.ponder.slots import (
    interleave_pauses,
    keys_of_slots,
    merge_slots,
    repeat_per_slot,
    rows_of_pass,
    split_slots,
)

sizes = st.integers(1, 5)


def test_the_slots_of_a_token_are_neighbours() -> None:
    embeddings = torch.tensor([10.0, 20.0]).reshape(2, 1, 1)
    thoughts = torch.tensor([[11.0, 12.0], [21.0, 22.0]]).reshape(2, 2, 1, 1)

    rows = rows_of_pass(embeddings, thoughts)

    assert rows.flatten().tolist() == [10, 11, 12, 20, 21, 22]


def test_a_pass_without_thoughts_has_one_row_per_token() -> None:
    embeddings = torch.randn(3, 2, 4)

    assert rows_of_pass(embeddings, None) is embeddings
    torch.testing.assert_close(rows_of_pass(embeddings, torch.empty(3, 0, 2, 4)), embeddings, rtol=0, atol=0)


@given(num_tokens=sizes, num_slots=sizes, batch=sizes, hidden=sizes)
def test_row_t_n_plus_k_is_slot_k_of_token_t(
    num_tokens: int, num_slots: int, batch: int, hidden: int
) -> None:
    rows = torch.arange(num_tokens * num_slots * batch * hidden).reshape(-1, batch, hidden)

    slots = split_slots(rows, num_slots)

    for token in range(num_tokens):
        for slot in range(num_slots):
            assert torch.equal(slots[token, slot], rows[token * num_slots + slot])
    assert torch.equal(merge_slots(slots), rows)
    assert torch.equal(rows_of_pass(slots[:, 0], slots[:, 1:]), rows)


@given(num_tokens=sizes, num_slots=sizes, batch=sizes)
def test_key_columns_follow_the_order_of_the_rows(num_tokens: int, num_slots: int, batch: int) -> None:
    per_slot = torch.arange(num_tokens * num_slots * batch).reshape(num_tokens, num_slots, batch)

    columns = keys_of_slots(per_slot)

    assert columns.shape == (batch, num_tokens * num_slots)
    for row in range(num_tokens * num_slots):
        assert torch.equal(columns[:, row], per_slot[row // num_slots, row % num_slots])


def test_every_slot_repeats_what_its_token_has() -> None:
    assert repeat_per_slot(torch.tensor([[5, 6], [7, 8]]), 3).tolist() == [
        [5, 5, 5, 6, 6, 6],
        [7, 7, 7, 8, 8, 8],
    ]


def test_pauses_follow_their_token() -> None:
    assert interleave_pauses(torch.tensor([[5, 6], [7, 0]]), 0, 2).tolist() == [
        [5, 0, 0, 6, 0, 0],
        [7, 0, 0, 0, 0, 0],
    ]


@given(num_tokens=sizes, num_pauses=st.integers(0, 4), batch=sizes)
def test_slot_0_is_the_token_and_all_others_are_pauses(num_tokens: int, num_pauses: int, batch: int) -> None:
    tokens = torch.arange(batch * num_tokens).reshape(batch, num_tokens)

    slots = split_slots(interleave_pauses(tokens, -7, num_pauses).transpose(0, 1), num_pauses + 1)

    assert torch.equal(slots[:, 0], tokens.transpose(0, 1))
    assert (slots[:, 1:] == -7).all()
    assert slots.shape == (num_tokens, num_pauses + 1, batch)


def test_splitting_takes_no_copy() -> None:
    rows = torch.zeros(6, 1, 1)
    split_slots(rows, 3)[1, 2] = 7.0

    assert rows[5].item() == 7.0


def test_rows_must_be_a_multiple_of_the_slots() -> None:
    with pytest.raises(ValueError, match=r"3 .* 7"):
        split_slots(torch.zeros(7, 1, 1), 3)
