import os
import signal
from collections.abc import Iterator

import pytest

from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.ranks.signals import StopFlag, StopRequest


@pytest.fixture
def process_group() -> Iterator[None]:
    start_process_group(Ranks.from_environment({}), timeout_seconds=30)
    yield
    stop_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    with StopFlag() as stop:
        assert stop.agreed() is StopRequest.NONE
        os.kill(os.getpid(), number)
        assert stop.agreed() is StopRequest.SIGNAL
        assert stop.received is number


@pytest.mark.usefixtures("process_group")
def test_what_a_rank_gives_notice_of_is_known_until_they_agree_again() -> None:
    with StopFlag() as stop:
        assert stop.agreed(notice=True) is StopRequest.NONE
        assert stop.noticed
        assert stop.agreed() is StopRequest.NONE
        assert not stop.noticed


@pytest.mark.usefixtures("process_group")
def test_ranks_agree_to_stop_while_they_wait_for_data() -> None:
    rounds: list[float] = []

    def never(wait_seconds: float) -> bool:
        rounds.append(wait_seconds)
        if len(rounds) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    with StopFlag() as stop:
        assert stop.agreed(until=lambda _: True) is StopRequest.NONE
        assert stop.agreed(until=never) is StopRequest.SIGNAL
    assert len(rounds) == 3


@pytest.mark.usefixtures("process_group")
def test_ranks_continue_when_their_data_is_ready() -> None:
    answers = iter([False, False, True])
    with StopFlag() as stop:
        assert stop.agreed(until=lambda _: next(answers)) is StopRequest.NONE
    assert next(answers, None) is None


def test_a_second_interrupt_is_not_swallowed() -> None:
    with StopFlag():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_previous_handlers_are_restored() -> None:
    before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    with StopFlag():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.usefixtures("process_group")
def test_a_time_limit_is_a_planned_stop_and_a_signal_overrides_it() -> None:
    with StopFlag(limit_seconds=0.0) as stop:
        assert stop.agreed() is StopRequest.PLANNED
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.agreed() is StopRequest.SIGNAL


def test_a_limit_that_has_not_passed_requests_nothing() -> None:
    with StopFlag(limit_seconds=3600.0) as stop:
        assert stop.requested is StopRequest.NONE
