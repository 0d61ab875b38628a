"""Global batches hold the same tokens whoever reads them, and epochs hold every token once."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from data_prep.manifest import TokenType
from pipeline.config.schema import DataConfig
from pipeline.data.batches import BatchLayout, PackingOptions, TrainingBatches
from pipeline.data.dataset import TokenRows
from pipeline.data.opening import Reading, open_training, training_order
from pipeline.metrics.data_hash import combine_digests, row_digests
from tests.support.shards import EOD_ID, VOCAB_SIZE, random_documents, write_split
from tests.unit.pipeline.data.test_opening import write_pair, write_rows

GLOBAL_BATCH = 8
READING = Reading(seq_length=16, vocab_size=VOCAB_SIZE)
NUM_BATCHES = 30


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The places that `CASES` names."""
    root = tmp_path_factory.mktemp("formats")
    kinds: tuple[TokenType, ...] = ("uint16", "int32")
    for seed, kind in enumerate(kinds):
        write_split(root / kind, random_documents(41 + 4 * seed, seed=seed), token_type=kind)
    write_pair(root / "pair", random_documents(43, seed=3))
    write_rows(root / "rows")
    return root


CASES: dict[str, Callable[[Path], DataConfig]] = {
    "shards": lambda root: DataConfig(path=root / "uint16"),
    "shards in order": lambda root: DataConfig(path=root / "int32", order="sequential"),
    "pair": lambda root: DataConfig(path=root / "pair", format="megatron", eod_id=EOD_ID),
    "rows": lambda root: DataConfig(path=root / "rows", format="rows", eod_id=EOD_ID),
    "blend": lambda root: DataConfig.model_validate(
        {"sources": [{"path": root / "uint16", "weight": 0.7}, {"path": root / "int32", "weight": 0.3}]}
    ),
}


def read_ranks(
    data: DataConfig, *, dp_size: int, micro: int, start: int = 0, stop: int = NUM_BATCHES
) -> Iterator[list[list[TokenRows]]]:
    """Yield what each rank reads of the global batches ``start`` .. ``stop``, freshly opened."""
    source = open_training(data, READING)
    order = training_order(data, source, seed=5)
    ranks = [
        TrainingBatches(
            source,
            order,
            layout=BatchLayout(
                global_batch_size=GLOBAL_BATCH, micro_batch_size=micro, dp_rank=rank, dp_size=dp_size
            ),
            packing=PackingOptions(),
        )
        for rank in range(dp_size)
    ]
    for number in range(start, stop):
        yield [rank.read(number * GLOBAL_BATCH).rows for rank in ranks]


def hashes(batches: Iterator[list[list[TokenRows]]]) -> list[str]:
    return [combine_digests([row_digests(rank) for rank in ranks]) for ranks in batches]


def tokens_in_order(ranks: Sequence[Sequence[TokenRows]]) -> list[list[int]]:
    """The samples of a global batch: ranks take micro-batches in turn."""
    return [
        tokens[:length].tolist()
        for turn in zip(*ranks, strict=True)
        for rows in turn
        for tokens, length in zip(rows.tokens, rows.lengths, strict=True)
    ]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dp_size", "micro"), [(1, 1), (1, 4), (2, 2), (2, 4), (4, 1), (4, 2)])
def test_the_layout_changes_no_global_batch(root: Path, case: str, dp_size: int, micro: int) -> None:
    data = CASES[case](root)
    expected = hashes(read_ranks(data, dp_size=1, micro=GLOBAL_BATCH))
    assert len(set(expected)) > NUM_BATCHES // 8
    assert hashes(read_ranks(data, dp_size=dp_size, micro=micro)) == expected


@pytest.mark.parametrize("case", CASES)
def test_two_resumes_in_a_row_on_other_layouts_change_no_global_batch(root: Path, case: str) -> None:
    data = CASES[case](root)
    whole = [tokens_in_order(ranks) for ranks in read_ranks(data, dp_size=1, micro=GLOBAL_BATCH)]
    stretches = (
        read_ranks(data, dp_size=4, micro=2, stop=7),
        read_ranks(data, dp_size=1, micro=1, start=7, stop=8),
        read_ranks(data, dp_size=2, micro=2, start=8),
    )
    assert [tokens_in_order(ranks) for stretch in stretches for ranks in stretch] == whole


@pytest.mark.parametrize("case", [case for case in CASES if case != "blend"])
@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_every_epoch_has_every_sample_once(root: Path, case: str, dp_size: int) -> None:
    data = CASES[case](root)
    source = open_training(data, READING)
    everything = source.rows(range(len(source)))
    expected = sorted(tokens_in_order([[everything]]))
    assert len(expected) % GLOBAL_BATCH != 0, "epochs must end within a global batch"
    num_batches = -(-3 * len(expected) // GLOBAL_BATCH)
    batches = read_ranks(data, dp_size=dp_size, micro=2, stop=num_batches)
    read = [tokens for ranks in batches for tokens in tokens_in_order(ranks)]
    for epoch in range(3):
        assert sorted(read[epoch * len(expected) : (epoch + 1) * len(expected)]) == expected


def test_rows_come_in_the_given_order_from_any_step(root: Path) -> None:
    data = CASES["rows"](root)
    source = open_training(data, READING)
    given = tokens_in_order([[source.rows(range(len(source)))]])
    (first, second) = read_ranks(data, dp_size=2, micro=2, start=1, stop=3)
    # Row 20 is the first again.
    assert tokens_in_order(first) + tokens_in_order(second) == (given * 2)[GLOBAL_BATCH : 3 * GLOBAL_BATCH]
