"""``metrics.jsonl``: one JSON object per event, and its reader.

An object holds ``event`` (``training`` or ``validation``), ``iteration``, ``consumed_samples``, ``time``
(seconds since the epoch) and one value per tag. JSON has no NaN or infinity: such a value is written as null.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.metrics import names
from pipeline.metrics.records import LossPoint, TrainingRecord, ValidationRecord
from pipeline.metrics.scalars import sweep_scalars, training_scalars
from pipeline.shared.json_lines import parse_json_lines

METRICS_FILE = "metrics.jsonl"
TRAINING = "training"
VALIDATION = "validation"


def training_event(record: TrainingRecord) -> dict[str, Any]:
    """Return the object of one logging interval, without its time."""
    event: dict[str, Any] = {
        "event": TRAINING,
        "iteration": record.iteration,
        "consumed_samples": record.consumed_samples,
    }
    if record.data_hash is not None:
        event[names.DATA_HASH] = record.data_hash
    return event | _values(training_scalars(record)) | _histogram(record)


def validation_event(record: ValidationRecord) -> dict[str, Any]:
    """Return the object of one evaluation, without its time."""
    event = {"event": VALIDATION, "iteration": record.iteration, "consumed_samples": record.consumed_samples}
    scalars = {names.LM_LOSS_VALIDATION: record.loss, names.LM_LOSS_VALIDATION_PPL: record.perplexity}
    sweep = {names.EVAL_SWEEP: [_values_of_point(point) for point in record.sweep]} if record.sweep else {}
    scalars |= dict(record.scalars) | sweep_scalars(record.sweep)
    return event | _values(scalars) | _histogram(record) | sweep


class JsonlSink:
    """A sink that appends one line per event, unbuffered, so that a crash loses none."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for appending; create its folder, and remove a last line that a crash cut short."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished_line(path)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write_training(self, record: TrainingRecord) -> None:
        """Append one logging interval."""
        self._write(training_event(record))

    def write_validation(self, record: ValidationRecord) -> None:
        """Append one evaluation."""
        self._write(validation_event(record))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: dict[str, Any]) -> None:
        self._file.write(json.dumps(event | {"time": round(time.time(), 3)}, allow_nan=False) + "\n")


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the events of a run in the order of its iterations.

    A resumed run writes some iterations twice: for each kind of event, the later one replaces the earlier and
    all that followed it. A last line that a crash cut short is skipped.

    Raises:
        ValueError: a line before the last is not a JSON object.
    """
    kept: dict[str, list[dict[str, Any]]] = {}
    for event in parse_json_lines(path.read_text(encoding="utf-8"), place=str(path)):
        events = kept.setdefault(event["event"], [])
        while events and events[-1]["iteration"] >= event["iteration"]:
            events.pop()
        events.append(event)
    return [event for events in kept.values() for event in events]


def curve(events: list[dict[str, Any]], event: str, tag: str) -> tuple[tuple[float, float], ...]:
    """Return the (iteration, value) points of one tag, without null values."""
    rows = (row for row in events if row["event"] == event and row.get(tag) is not None)
    return tuple((float(row["iteration"]), float(row[tag])) for row in rows)


def _remove_unfinished_line(path: Path) -> None:
    content = path.read_bytes() if path.exists() else b""
    if not content.endswith(b"\n"):
        with path.open("ab") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _values(scalars: Mapping[str, float]) -> dict[str, float | None]:
    return {tag: value if math.isfinite(value) else None for tag, value in scalars.items()}


def _values_of_point(point: LossPoint) -> dict[str, Any]:
    values = {"loss": point.loss, "perplexity": point.perplexity}
    values |= {"mean-steps": point.mean_steps, "flops-per-token": point.flops_per_token}
    return {"kind": point.kind, "value": point.value, **_values(values)}


def _histogram(record: TrainingRecord | ValidationRecord) -> dict[str, list[float]]:
    return {} if record.steps_count is None else {names.STEPS_HISTOGRAM: list(record.steps_count)}
