import logging
import os
import signal
import threading

import pytest

from pipeline.ranks.acknowledgement import Acknowledgement
from pipeline.ranks.signals import StopFlag
from pipeline.shared.exit_codes import ExitCode

PATIENCE_SECONDS = 0.2


def _wait_for(happened: threading.Event) -> bool:
    return happened.wait(10.0)


class _Logged(logging.Handler):
    """Notes what is logged, in which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.happened = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.messages.append(record.getMessage())
        self.happened.set()


@pytest.fixture
def logged() -> "_Logged":
    return _Logged()


@pytest.fixture(autouse=True)
def _listening(logged: _Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("pipeline.ranks.acknowledgement")
    monkeypatch.setattr(logger, "handlers", [logged])
    monkeypatch.setattr(logger, "level", logging.INFO)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_acknowledged_once_and_by_name(logged: _Logged, number: signal.Signals) -> None:
    with StopFlag() as stop, Acknowledgement("saving first"):
        os.kill(os.getpid(), number)
        assert _wait_for(logged.happened)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.received is number
    assert len(logged.messages) == 1
    assert number.name in logged.messages[0]
    assert "saving first" in logged.messages[0]


def test_silent_ranks_say_nothing(logged: _Logged) -> None:
    with StopFlag(), Acknowledgement("saving first", speaks=False):
        os.kill(os.getpid(), signal.SIGTERM)
    assert logged.messages == []


def test_a_second_interrupt_ends_a_process_that_does_not_end_itself() -> None:
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    with StopFlag(), Acknowledgement("saving first", patience_seconds=PATIENCE_SECONDS, end=end):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert _wait_for(ended)
    assert codes == [ExitCode.INTERRUPTED]


def test_a_process_that_ends_itself_is_left_alone() -> None:
    codes: list[int] = []

    def interrupted_twice() -> None:
        with StopFlag(), Acknowledgement("saving first", end=codes.append):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert codes == []


def test_the_previous_wakeup_file_is_restored_and_no_thread_is_left() -> None:
    before, threads = signal.set_wakeup_fd(-1), threading.active_count()
    with StopFlag(), Acknowledgement("saving first"):
        assert threading.active_count() == threads + 1
    assert signal.set_wakeup_fd(before) == -1
    assert threading.active_count() == threads
