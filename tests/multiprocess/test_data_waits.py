"""A stop signal reaches all ranks, and ends the run, while they wait for data."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.checkpoint.tracker import latest_iteration
from pipeline.config.load import load_config
from pipeline.data.batches import BatchShare, TrainingBatches
from pipeline.data.prefetch import Ahead
from pipeline.ranks.signals import StopFlag
from pipeline.run.start import train
from pipeline.shared.exit_codes import ExitCode
from tests.support.commands import wait_until
from tests.support.ranks import SharedRanks
from tests.support.runs import has_trained, one_rank

pytestmark = pytest.mark.multiprocess

HANGS_AFTER = 2


def stop_while_data_hang(hanging_rank: int, stopped_rank: int) -> str:
    """Return what the ranks agree on when one waits for its data and one receives a stop signal."""
    may_end = threading.Event()

    def make(position: int) -> int:
        if dist.get_rank() == hanging_rank:
            may_end.wait(60)
        return position

    reader = Ahead(make, range(3), budget=1, timeout_seconds=60)
    try:
        with StopFlag() as stop:
            if dist.get_rank() == stopped_rank:
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return stop.agreed(until=reader.is_ready).name
    finally:
        may_end.set()
        reader.close()


@pytest.mark.parametrize(("hanging_rank", "stopped_rank"), [(0, 1), (1, 1)])
def test_a_stop_signal_to_one_rank_reaches_another_that_waits_for_data(
    ranks: SharedRanks, hanging_rank: int, stopped_rank: int
) -> None:
    assert ranks.run(stop_while_data_hang, 2, hanging_rank, stopped_rank) == ["SIGNAL", "SIGNAL"]


def test_a_run_that_is_stopped_while_its_data_hang_saves(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(recipe, one_rank(tmp_path / "run"))
    may_end = threading.Event()
    read = TrainingBatches.read

    def hang(batches: TrainingBatches, consumed_samples: int) -> BatchShare:
        if consumed_samples == HANGS_AFTER * config.training.global_batch_size:
            wait_until(lambda: has_trained(config.output_dir, HANGS_AFTER))
            os.kill(os.getpid(), signal.SIGTERM)
            may_end.wait(60)
        return read(batches, consumed_samples)

    monkeypatch.setattr(TrainingBatches, "read", hang)
    monkeypatch.setattr("pipeline.data.prefetch.CLOSE_SECONDS", 0.1)
    try:
        with StopFlag() as stop:
            assert train(config, stop) is ExitCode.REQUEUE
    finally:
        may_end.set()
    assert latest_iteration(config.checkpoint_directory) == HANGS_AFTER
