"""Where records go: one interface, and the set of sinks of a run."""

from collections.abc import Sequence
from typing import Protocol

from pipeline.metrics.records import TrainingRecord, ValidationRecord


class MetricsSink(Protocol):
    """Something that takes records in."""

    def write_training(self, record: TrainingRecord) -> None:
        """Take in one logging interval."""

    def write_validation(self, record: ValidationRecord) -> None:
        """Take in one evaluation."""

    def close(self) -> None:
        """Write what is held back and let go of files."""


class SinkGroup:
    """Hand every record to several sinks. An empty group is the sink of the ranks that do not write."""

    def __init__(self, sinks: Sequence[MetricsSink] = ()) -> None:
        """Write to ``sinks``, in this order."""
        self._sinks = tuple(sinks)

    def write_training(self, record: TrainingRecord) -> None:
        """Hand on one logging interval."""
        for sink in self._sinks:
            sink.write_training(record)

    def write_validation(self, record: ValidationRecord) -> None:
        """Hand on one evaluation."""
        for sink in self._sinks:
            sink.write_validation(record)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()
