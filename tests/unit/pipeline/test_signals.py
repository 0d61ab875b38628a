import os
import signal
from collections.abc import Iterator

import pytest
import torch

from pipeline.distributed import start_process_group, stop_process_group
from pipeline.ranks import Ranks
from pipeline.signals import StopFlag

CPU = torch.device("cpu")


@pytest.fixture
def process_group() -> Iterator[None]:
    start_process_group(Ranks.from_environment({}), timeout_seconds=30)
    yield
    stop_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    with StopFlag(CPU) as stop:
        assert not stop.is_set_on_any_rank()
        os.kill(os.getpid(), number)
        assert stop.is_set_on_any_rank()
        assert stop.received is number


def test_a_second_interrupt_is_not_swallowed() -> None:
    with StopFlag(CPU):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_in_place_before_come_back() -> None:
    before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    with StopFlag(CPU):
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
