import threading

from pipeline.shared.bounded import within


def test_what_comes_in_time_is_returned() -> None:
    assert within(10.0, lambda: 7) == 7


def test_what_does_not_come_is_not_waited_for() -> None:
    never = threading.Event()
    assert within(0.05, never.wait) is None
    never.set()
