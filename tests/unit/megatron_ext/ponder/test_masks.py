import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.ponder.masks import (
    PADDING_DOCUMENT,
    Segments,
    document_segments,
    scale_segments,
    visible_rows,
)

ids = st.integers(-1, 3)


def test_runs_of_equal_ids_are_segments() -> None:
    document_ids = torch.tensor([[4, 4, 4, 7, 7], [2, 2, 2, 2, PADDING_DOCUMENT]])

    assert document_segments(document_ids) == (((0, 3), (3, 5)), ((0, 4), (4, 5)))


def test_sequences_of_one_run_each_need_no_segments() -> None:
    assert document_segments(torch.tensor([[4, 4, 4], [5, 5, 5]])) is None
    assert document_segments(torch.tensor([[4]])) is None


def test_one_sequence_of_two_runs_is_enough_to_need_them() -> None:
    assert document_segments(torch.tensor([[4, 4], [4, 5]])) == (((0, 2),), ((0, 1), (1, 2)))


def test_an_id_that_comes_back_is_another_document() -> None:
    assert document_segments(torch.tensor([[1, 2, 1]])) == (((0, 1), (1, 2), (2, 3)),)


def test_rows_of_a_segment() -> None:
    segments: Segments = (((0, 2), (2, 3)),)

    assert scale_segments(segments, 3) == (((0, 6), (6, 9)),)
    assert scale_segments(segments, 1) == segments
    assert scale_segments(None, 3) is None


def test_a_dense_mask_by_hand() -> None:
    seen = visible_rows(torch.tensor([[0, 1]]), 2)[0].int().tolist()

    assert seen == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


@given(row=st.lists(ids, min_size=1, max_size=8).map(sorted), num_slots=st.integers(1, 3))
def test_segments_and_dense_mask_agree(row: list[int], num_slots: int) -> None:
    # One more sequence of two documents, so that there are always segments.
    other = [0] * (len(row) - 1) + [1]
    document_ids = torch.tensor([row, other])

    segments = scale_segments(document_segments(document_ids), num_slots)

    size = len(row) * num_slots
    dense = torch.zeros(2, size, size, dtype=torch.bool)
    for sequence, runs in enumerate(segments or (((0, size),), ((0, size),))):
        for start, stop in runs:
            dense[sequence, start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
    assert torch.equal(visible_rows(document_ids, num_slots), dense)
