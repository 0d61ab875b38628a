"""Weights & Biases, of the extra ``wandb``; its environment variables say where and with which key."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from pipeline.metrics import names
from pipeline.metrics.records import TrainingRecord, ValidationRecord
from pipeline.metrics.scalars import training_scalars, validation_scalars
from pipeline.metrics.tracking import store_run_id, stored_run_id

__all__ = ["WandbSink"]

logger = logging.getLogger(__name__)

# Of what waits at the end of a run: the rest stays in its folder, for `wandb sync`.
_FINISH_SECONDS = 100.0
# The horizontal axis of all curves.
_ITERATION = "iteration"


class WandbSink:
    """A sink for a run of Weights & Biases; offline with ``WANDB_MODE=offline``."""

    def __init__(
        self, folder: Path, *, project: str, name: str, settings: Mapping[str, Any], resumes: bool
    ) -> None:
        """Open the run.

        Args:
            folder: of the run, where ``wandb`` keeps its files.
            project: that the run is in.
            name: of the run.
            settings: all settings of the run, without secrets.
            resumes: the run has been trained before, and its curves continue.
        """
        known = stored_run_id(folder, "wandb") if resumes else None
        # Silent from its set-up on, it does not ask for a key on the terminal, where a training runs.
        wandb.setup(wandb.Settings(silent=True))
        self._run = wandb.init(
            project=project,
            name=name,
            id=known,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            settings=wandb.Settings(console="off", finish_timeout=_FINISH_SECONDS),
        )
        store_run_id(folder, "wandb", self._run.id)
        logger.info("metrics also go to wandb: %s", self._run.url or self._run.dir)
        # Not wandb's own count of calls, which refuses the iterations that a resumed run repeats.
        self._run.define_metric(_ITERATION)
        self._run.define_metric("*", step_metric=_ITERATION)

    def write_training(self, record: TrainingRecord) -> None:
        """Write one logging interval."""
        self._write(record.iteration, training_scalars(record), names.STEPS_HISTOGRAM, record.steps_count)

    def write_validation(self, record: ValidationRecord) -> None:
        """Write one evaluation."""
        tag = names.on_validation(names.STEPS_HISTOGRAM)
        self._write(record.iteration, validation_scalars(record), tag, record.steps_count)

    def close(self) -> None:
        """Write what waits, and end the run."""
        self._run.finish()

    def _write(self, iteration: int, scalars: Mapping[str, float], histogram: str, counts: Any) -> None:
        values: dict[str, Any] = {_ITERATION: iteration, **scalars}
        if counts is not None and sum(counts) > 0:
            edges = [step - 0.5 for step in range(len(counts) + 1)]
            values[histogram] = wandb.Histogram(np_histogram=(list(counts), edges))
        self._run.log(values)
