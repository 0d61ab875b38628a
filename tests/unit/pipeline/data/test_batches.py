import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.model.micro_batch import TokenBatch
from pipeline.data.batches import (
    NO_LABEL,
    BatchLayout,
    HeldoutBatches,
    PackingOptions,
    TrainingBatches,
    build_batch,
    pack_rows,
)
from pipeline.data.dataset import TokenDataset, TokenRows, open_dataset
from pipeline.data.order import SampleOrder
from pipeline.metrics.data_hash import combine_digests, row_digests
from tests.support.shards import EOD_ID, stream_of, write_split
from tests.unit.pipeline.data.conftest import DOCUMENTS, SEQ_LENGTH

STREAM = stream_of(DOCUMENTS)
PACKING = PackingOptions()


@pytest.fixture
def small(tmp_path: Path) -> TokenDataset:
    """The stream 1 2 0 3 0 4 5 6 0 in samples of 6 + 1 tokens; the second sample is 5 6 0."""
    return open_dataset(write_split(tmp_path, [[1, 2], [3], [4, 5, 6]]), "train", seq_length=6)


def build_training(
    dataset: TokenDataset, *, dp_rank: int = 0, dp_size: int = 1, micro: int = 2
) -> TrainingBatches:
    layout = BatchLayout(global_batch_size=8, micro_batch_size=micro, dp_rank=dp_rank, dp_size=dp_size)
    order = SampleOrder(num_samples=len(dataset), seed=11, shuffled=True)
    return TrainingBatches(dataset, order, layout=layout, packing=PACKING)


def data_hash(ranks: list[TrainingBatches], consumed: int) -> str:
    """Hash what the ranks read together of a global batch."""
    return combine_digests([row_digests(rank.read(consumed).rows) for rank in ranks])


def sorted_rows(batches: list[TokenBatch]) -> list[tuple[int, ...]]:
    """All fields of all rows, in an order that does not depend on how they were shared out."""
    rows = [
        torch.cat([batch.tokens, batch.labels, batch.position_ids, batch.document_ids], dim=1)
        for batch in batches
    ]
    return sorted(tuple(row.tolist()) for row in torch.cat(rows))


def test_a_packed_batch_by_hand(small: TokenDataset) -> None:
    batch = build_batch(
        small, [0, 1], reset_positions=True, reset_attention=True, mask_document_boundaries=True
    )
    assert batch.tokens.tolist() == [[1, 2, 0, 3, 0, 4], [5, 6, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[2, 0, -100, 0, -100, 5], [6, 0, -100, -100, -100, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 0, 0, 0]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 0, -1, -1, -1]]
    assert {
        field.dtype for field in (batch.tokens, batch.labels, batch.position_ids, batch.document_ids)
    } == {torch.int64}


def pack_slowly(tokens: list[int], length: int, options: PackingOptions) -> list[tuple[int, int, int, int]]:
    """Token, label, position and document of each place of a row, one after the other."""
    packed = []
    position, document = 0, 0
    for place, (token, label) in enumerate(pairwise(tokens)):
        has_label = place + 1 < length and not (token == EOD_ID and options.mask_document_boundaries)
        packed.append(
            (
                token,
                label if has_label else NO_LABEL,
                position if options.reset_positions else place,
                (document if options.reset_attention else 0) if place < length else -1,
            )
        )
        ends = token == EOD_ID
        position, document = (0, document + 1) if ends else (position + 1, document)
    return packed


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    num_rows=st.integers(1, 4),
    seq_length=st.integers(1, 9),
    stored=st.sampled_from([np.uint16, np.int32]),
    switches=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_packing_is_what_one_token_after_the_other_gives(
    data: st.DataObject, num_rows: int, seq_length: int, stored: type, switches: tuple[bool, bool, bool]
) -> None:
    options = PackingOptions(
        reset_positions=switches[0], reset_attention=switches[1], mask_document_boundaries=switches[2]
    )
    row = st.lists(st.integers(0, 3), min_size=seq_length + 1, max_size=seq_length + 1)
    tokens = np.array(data.draw(st.lists(row, min_size=num_rows, max_size=num_rows)), dtype=stored)
    lengths = np.array(
        data.draw(st.lists(st.integers(0, seq_length + 1), min_size=num_rows, max_size=num_rows))
    )
    tokens[np.arange(seq_length + 1) >= lengths[:, None]] = EOD_ID
    batch = pack_rows(TokenRows(tokens=tokens, lengths=lengths), eod_id=EOD_ID, options=options)
    fields = torch.stack([batch.tokens, batch.labels, batch.position_ids, batch.document_ids], dim=-1)
    for number in range(num_rows):
        expected = pack_slowly(tokens[number].tolist(), int(lengths[number]), options)
        assert [tuple(place) for place in fields[number].tolist()] == expected


def test_documents_may_be_treated_as_one_text(small: TokenDataset) -> None:
    batch = build_batch(
        small, [0, 1], reset_positions=False, reset_attention=False, mask_document_boundaries=False
    )
    assert batch.labels.tolist() == [[2, 0, 3, 0, 4, 5], [6, 0, -100, -100, -100, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert batch.document_ids.tolist() == [[0] * 6, [0, 0, 0, -1, -1, -1]]


def test_every_token_but_the_first_is_a_label_once(dataset: TokenDataset) -> None:
    batch = build_batch(
        dataset,
        range(len(dataset)),
        reset_positions=True,
        reset_attention=True,
        mask_document_boundaries=False,
    )
    assert batch.labels[batch.labels != NO_LABEL].tolist() == STREAM[1:]


def test_masked_boundaries_leave_out_the_first_token_of_each_document(dataset: TokenDataset) -> None:
    batch = build_batch(
        dataset,
        range(len(dataset)),
        reset_positions=True,
        reset_attention=True,
        mask_document_boundaries=True,
    )
    expected = [token for before, token in pairwise(STREAM) if before != EOD_ID]
    assert batch.labels[batch.labels != NO_LABEL].tolist() == expected


@pytest.mark.parametrize(("dp_size", "micro"), [(1, 1), (1, 8), (2, 2), (4, 1), (4, 2), (8, 1)])
def test_global_batches_do_not_depend_on_the_layout(dataset: TokenDataset, dp_size: int, micro: int) -> None:
    reference = build_training(dataset)
    ranks = [build_training(dataset, dp_rank=rank, dp_size=dp_size, micro=micro) for rank in range(dp_size)]
    for consumed in (0, 8, 8 * 1000):
        shares = [rank.micro_batches(consumed) for rank in ranks]
        assert {len(share) for share in shares} == {8 // (dp_size * micro)}
        assert {batch.tokens.shape for share in shares for batch in share} == {(micro, SEQ_LENGTH)}
        together = [batch for share in shares for batch in share]
        assert sorted_rows(together) == sorted_rows(reference.micro_batches(consumed))
        assert data_hash(ranks, consumed) == data_hash([reference], consumed)


def test_the_data_hash_is_the_sha256_of_the_samples_tokens(dataset: TokenDataset) -> None:
    training = build_training(dataset)
    indices = training.order.indices(16, 8)
    samples = [STREAM[index * SEQ_LENGTH :][: SEQ_LENGTH + 1] for index in indices]
    digests = [hashlib.sha256(np.array(sample, dtype="<i4").tobytes()).digest() for sample in samples]
    assert data_hash([training], 16) == hashlib.sha256(b"".join(digests)).hexdigest()[:16]
    assert data_hash([training], 16) != data_hash([training], 24)


def test_resuming_needs_nothing_but_the_consumed_samples(folder: Path, dataset: TokenDataset) -> None:
    whole_run = [data_hash([build_training(dataset)], consumed) for consumed in range(0, 320, 8)]
    for start, dp_size, micro in ((160, 2, 4), (240, 4, 1)):
        reopened = open_dataset(folder, "train", seq_length=SEQ_LENGTH)
        ranks = [
            build_training(reopened, dp_rank=rank, dp_size=dp_size, micro=micro) for rank in range(dp_size)
        ]
        found = [data_hash(ranks, consumed) for consumed in range(start, 320, 8)]
        assert found == whole_run[start // 8 :]


def test_the_hash_tells_a_changed_token_and_a_changed_order(dataset: TokenDataset) -> None:
    rows = dataset.rows([3, 4])
    changed, swapped = rows.tokens.copy(), rows.tokens[::-1]
    changed[1, -1] += 1
    hashes = [
        combine_digests([row_digests([TokenRows(tokens=tokens, lengths=rows.lengths)])])
        for tokens in (rows.tokens, changed, swapped)
    ]
    assert len(set(hashes)) == 3


def test_sizes_that_do_not_divide_are_refused_with_one_that_does() -> None:
    with pytest.raises(ValueError, match=r"training\.global_batch_size .*\(2\).*\(3\).* 8.* 6"):
        BatchLayout(global_batch_size=8, micro_batch_size=2, dp_rank=0, dp_size=3)
    with pytest.raises(ValueError, match=r"0\.\.1.* 2"):
        BatchLayout(global_batch_size=8, micro_batch_size=2, dp_rank=2, dp_size=2)


def test_an_order_of_another_dataset_is_refused(dataset: TokenDataset) -> None:
    layout = BatchLayout(global_batch_size=8, micro_batch_size=2, dp_rank=0, dp_size=1)
    order = SampleOrder(num_samples=3, seed=1, shuffled=True)
    with pytest.raises(ValueError, match=r"order .*\d+ samples"):
        TrainingBatches(dataset, order, layout=layout, packing=PACKING)


def build_heldout(dataset: TokenDataset, *, rank: int, dp_size: int, max_batches: int) -> HeldoutBatches:
    layout = BatchLayout(global_batch_size=8, micro_batch_size=2, dp_rank=rank, dp_size=dp_size)
    order = SampleOrder(num_samples=len(dataset), seed=0, shuffled=True)
    return HeldoutBatches(dataset, order, layout=layout, packing=PACKING, max_global_batches=max_batches)


@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_held_out_batches_cover_the_split_once_and_pad_the_end(dataset: TokenDataset, dp_size: int) -> None:
    assert len(dataset) % 8 != 0, "the last batch must have rows of padding"
    ranks = [build_heldout(dataset, rank=rank, dp_size=dp_size, max_batches=1000) for rank in range(dp_size)]
    shares = [list(rank) for rank in ranks]
    assert {len(share) for share in shares} == {-(-len(dataset) // 8)} == {len(ranks[0])}
    batches = [batch for share in shares for micro_batches in share for batch in micro_batches]
    documents = torch.cat([batch.document_ids for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    is_padding_row = (documents == -1).all(dim=1)
    assert int(is_padding_row.sum()) == -len(dataset) % 8
    assert (labels[documents == -1] == NO_LABEL).all()
    real_tokens = torch.cat([batch.tokens for batch in batches])[documents != -1]
    # the last token of the stream is a token of the last sample only where that sample is short
    assert sorted(real_tokens.tolist()) == sorted(STREAM)


def test_held_out_batches_are_finite_and_repeat(dataset: TokenDataset) -> None:
    heldout = build_heldout(dataset, rank=0, dp_size=1, max_batches=3)
    first, second = list(heldout), list(heldout)
    assert len(heldout) == len(first) == 3
    for left, right in zip(first, second, strict=True):
        assert sorted_rows(left) == sorted_rows(right)
    with pytest.raises(ValueError, match=r"evaluation\.iters"):
        build_heldout(dataset, rank=0, dp_size=1, max_batches=0)
