from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.data.batches import BatchLayout, PackingOptions, TrainingBatches
from pipeline.data.dataset import open_dataset
from pipeline.data.order import SampleOrder
from pipeline.data.prefetch import PrefetchedBatches
from pipeline.metrics.data_hash import gather_data_hash
from tests.support.ranks import SharedRanks, run_alone
from tests.support.shards import random_documents, write_split

CONSUMED = (0, 8, 800)


def hashes_of_rank(folder: Path, micro_batch_size: int, num_ahead: int) -> list[str]:
    dataset = open_dataset(folder, "train", seq_length=16)
    layout = BatchLayout(
        global_batch_size=8,
        micro_batch_size=micro_batch_size,
        dp_rank=dist.get_rank(),
        dp_size=dist.get_world_size(),
    )
    order = SampleOrder(num_samples=len(dataset), seed=11, shuffled=True)
    plain = TrainingBatches(dataset, order, layout=layout, packing=PackingOptions())
    batches = PrefetchedBatches(plain, stop=24, num_batches=num_ahead, timeout_seconds=30)
    try:
        return [gather_data_hash(batches.read(consumed).rows, dist.group.WORLD) for consumed in CONSUMED]
    finally:
        batches.close()


@pytest.mark.multiprocess
@pytest.mark.parametrize(("micro_batch_size", "num_ahead"), [(1, 0), (4, 2), (2, 1)])
def test_two_ranks_hash_the_global_batch_of_one(
    ranks: SharedRanks, tmp_path: Path, micro_batch_size: int, num_ahead: int
) -> None:
    folder = write_split(tmp_path, random_documents(47))
    expected = run_alone(hashes_of_rank, folder, 8, 0)
    assert len(set(expected)) == len(CONSUMED)
    assert ranks.run(hashes_of_rank, 2, folder, micro_batch_size, num_ahead) == [expected, expected]
