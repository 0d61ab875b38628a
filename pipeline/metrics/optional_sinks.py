"""Sinks that a training can do without: one that fails is reported once and is off from then on."""

import logging
import threading
from collections.abc import Callable
from queue import Full, Queue

from pipeline.metrics.records import MetricsSink, TrainingRecord, ValidationRecord

__all__ = ["BackgroundSink", "OptionalSink"]

logger = logging.getLogger(__name__)

_Action = Callable[[MetricsSink], None]
# Far more than a service that still takes records lets wait.
_MOST_WAITING = 10_000
_CLOSE_SECONDS = 120.0


class OptionalSink:
    """A sink that is written by the caller, and whose failure does not reach it."""

    def __init__(self, name: str, sink: MetricsSink) -> None:
        """Write to ``sink``; its ``name`` is for people."""
        self._name = name
        self._sink: MetricsSink | None = sink

    def write_training(self, record: TrainingRecord) -> None:
        """Write one logging interval."""
        self._attempt(lambda sink: sink.write_training(record))

    def write_validation(self, record: ValidationRecord) -> None:
        """Write one evaluation."""
        self._attempt(lambda sink: sink.write_validation(record))

    def close(self) -> None:
        """Close the sink."""
        self._attempt(lambda sink: sink.close())

    def _attempt(self, action: _Action) -> None:
        if self._sink is None:
            return
        try:
            action(self._sink)
        except Exception as error:
            self._sink = None
            _report(self._name, error)


class BackgroundSink:
    """A sink of a service, opened and written by a thread of its own.

    Neither a service that fails nor one that does not respond delays the training. However long opening
    takes, records wait.
    """

    def __init__(
        self,
        name: str,
        open_sink: Callable[[], MetricsSink],
        *,
        close_seconds: float = _CLOSE_SECONDS,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        """Start the thread, which opens the sink.

        Args:
            name: of the service, for people.
            open_sink: returns the sink, which is used in the same thread only.
            close_seconds: how long :meth:`close` waits until everything is written.
            most_waiting: records that may wait; with more, the sink is off.
        """
        self._name = name
        self._open_sink = open_sink
        self._close_seconds = close_seconds
        self._actions: Queue[_Action | None] = Queue(most_waiting)
        self._is_off = threading.Event()
        # A thread that never returns ends with the process.
        self._thread = threading.Thread(target=self._write_all, name=f"sink {name}", daemon=True)
        self._thread.start()

    def write_training(self, record: TrainingRecord) -> None:
        """Hand over one logging interval."""
        self._hand_over(lambda sink: sink.write_training(record))

    def write_validation(self, record: ValidationRecord) -> None:
        """Hand over one evaluation."""
        self._hand_over(lambda sink: sink.write_validation(record))

    def close(self) -> None:
        """Wait until everything is written and the sink is closed, but not for ever."""
        self._hand_over(None)
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            self._turn_off(TimeoutError(f"it has not taken all records within {self._close_seconds:g} s"))

    def _hand_over(self, action: _Action | None) -> None:
        if self._is_off.is_set():
            return
        try:
            self._actions.put_nowait(action)
        except Full:
            self._turn_off(TimeoutError(f"{self._actions.maxsize} records wait"))

    def _write_all(self) -> None:
        try:
            sink = self._open_sink()
            while (action := self._actions.get()) is not None and not self._is_off.is_set():
                action(sink)
            sink.close()
        except Exception as error:
            self._turn_off(error)

    def _turn_off(self, error: Exception) -> None:
        if not self._is_off.is_set():
            self._is_off.set()
            _report(self._name, error)


def _report(name: str, error: Exception) -> None:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    logger.warning(
        "metrics no longer go to %s: %s; the training continues, and metrics.jsonl has all of them",
        name,
        reason,
    )
