"""MLflow, of the extra ``mlflow``; ``MLFLOW_TRACKING_URI`` says where."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from pipeline.metrics import names
from pipeline.metrics.records import TrainingRecord, ValidationRecord
from pipeline.metrics.scalars import training_scalars, validation_scalars
from pipeline.metrics.tracking import store_run_id, stored_run_id

__all__ = ["MlflowSink"]

logger = logging.getLogger(__name__)

# Of MLflow: parameters in one request, and characters of a value.
_MOST_PARAMETERS = 100
_LONGEST_VALUE = 500


# Stores in files keep a metric under its name, which cannot be a file and a folder (`throughput/..`) as well.
_RENAMED = {names.THROUGHPUT: f"{names.THROUGHPUT}/tflops_per_device"}


class MlflowSink:
    """A sink for a run of MLflow, with the iteration as step."""

    def __init__(
        self, folder: Path, *, project: str, name: str, settings: Mapping[str, Any], resumes: bool
    ) -> None:
        """Open the run.

        Args:
            folder: of the run.
            project: experiment that the run is in; made if there is none of that name.
            name: of the run.
            settings: all settings of the run, without secrets.
            resumes: the run has been trained before, and its curves continue.
        """
        self._client = MlflowClient()
        known = stored_run_id(folder, "mlflow") if resumes else None
        self._run_id = known or self._start(project, name, settings)
        store_run_id(folder, "mlflow", self._run_id)
        self._client.update_run(self._run_id, status="RUNNING")
        logger.info("metrics also go to mlflow: run %s", self._run_id)

    def write_training(self, record: TrainingRecord) -> None:
        """Write one logging interval."""
        self._write(record.iteration, training_scalars(record))

    def write_validation(self, record: ValidationRecord) -> None:
        """Write one evaluation."""
        self._write(record.iteration, validation_scalars(record))

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id)

    def _start(self, project: str, name: str, settings: Mapping[str, Any]) -> str:
        experiment = self._client.get_experiment_by_name(project)
        number = self._client.create_experiment(project) if experiment is None else experiment.experiment_id
        run_id = str(self._client.create_run(number, run_name=name).info.run_id)
        parameters = [Param(key, value[:_LONGEST_VALUE]) for key, value in _flattened(settings)]
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(run_id, params=parameters[start : start + _MOST_PARAMETERS])
        return run_id

    def _write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        milliseconds = int(time.time() * 1000)
        metrics = [
            Metric(_RENAMED.get(tag, tag), value, milliseconds, iteration)
            for tag, value in scalars.items()
            if not math.isnan(value)
        ]
        self._client.log_batch(self._run_id, metrics=metrics)


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", str(value)
