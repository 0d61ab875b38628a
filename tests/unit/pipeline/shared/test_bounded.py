import threading
import time

import pytest

from pipeline.shared.bounded import wait_until, within


def test_what_comes_in_time_is_returned() -> None:
    assert within(10.0, lambda: 7) == 7


def test_what_does_not_come_is_not_waited_for() -> None:
    never = threading.Event()
    assert within(0.05, never.wait) is None
    never.set()


def test_a_condition_is_polled_until_it_holds() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), seconds=10.0, poll_seconds=0.001)
    assert next(answers, None) is None


def test_a_condition_is_checked_once_even_without_time() -> None:
    assert wait_until(lambda: True, seconds=0.0)


def test_a_wait_ends_at_its_limit() -> None:
    started = time.monotonic()
    assert not wait_until(lambda: False, seconds=0.05, poll_seconds=0.01)
    assert 0.05 <= time.monotonic() - started < 5.0


def test_an_error_of_the_condition_ends_the_wait() -> None:
    def fail() -> bool:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        wait_until(fail, seconds=10.0)
