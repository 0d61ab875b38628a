"""Ranks agree to stop; the ranks of tests report failures."""

import os
import signal
import time
from typing import Any

import pytest
import torch.distributed

from pipeline.ranks.signals import StopFlag
from tests.support.ranks import SharedRanks, run_on_ranks

pytestmark = pytest.mark.multiprocess


def _stop_on_a_signal_to_rank_one() -> list[bool]:
    answers = []
    with StopFlag() as stop:
        for step in range(3):
            if step == 1 and torch.distributed.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            answers.append(bool(stop.agreed()))
    return answers


def _fail_on(rank: int) -> None:
    if torch.distributed.get_rank() == rank:
        raise ValueError("planned")


def _die_on(rank: int) -> None:
    if torch.distributed.get_rank() == rank:
        os._exit(9)
    time.sleep(60)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(ranks: SharedRanks) -> None:
    assert ranks.run(_stop_on_a_signal_to_rank_one, 2) == [[False, True, True]] * 2


def test_a_failing_rank_is_named_with_its_error() -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 failed:(.|\n)*ValueError: planned"):
        run_on_ranks(_fail_on, 2, 1)


def test_a_dying_rank_is_named_with_its_exit_code() -> None:
    with pytest.raises(RuntimeError, match="rank 0: exit code 9"):
        run_on_ranks(_die_on, 2, 0)


def test_ranks_that_do_not_finish_in_time_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"ranks \[0\] did not finish within 4 seconds"):
        run_on_ranks(_sleep, 1, timeout_seconds=4)


def _sleep() -> Any:
    time.sleep(60)
