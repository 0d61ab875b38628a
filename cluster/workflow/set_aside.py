"""Making room for a step that starts from scratch: the output of an earlier run is kept under other names."""

import logging
import shutil
from dataclasses import replace
from datetime import UTC, datetime

from cluster.workflow.marker import Marker
from cluster.workflow.todo import StepState, differing
from pipeline.config.schema import RunConfig
from pipeline.config.workflow_section import ExportStep, TrainStep, WorkflowStep
from pipeline.metrics.history import HISTORY_FILE
from pipeline.metrics.jsonl import METRICS_FILE

logger = logging.getLogger(__name__)

# A longer training continues from the shorter one.
_CONTINUES = "training.train_iters"
# `pipeline.metrics.tensorboard` loads torch.
_CURVES = "tensorboard"


def starts_from_scratch(state: StepState, *, job: str, again: bool) -> bool:
    """Tell whether a step must not resume from the output of its last run.

    Args:
        state: of the step.
        job: identifies this run; a job that was interrupted resumes from its own output.
        again: it was requested although the step is done.
    """
    marker = state.marker
    if marker is None:
        return False
    if again:
        return marker.job != job
    before, now = dict(marker.settings), dict(state.settings)
    before.pop(_CONTINUES, None)
    now.pop(_CONTINUES, None)
    return bool(differing(marker.model_copy(update={"settings": before}), replace(state, settings=now)))


def set_aside(config: RunConfig, step: WorkflowStep, marker: Marker, output: str | None) -> None:
    """Move the checkpoints and curves of an earlier training, and remove an earlier export of this step.

    Args:
        config: of the run.
        step: which starts from scratch.
        marker: of its last run.
        output: identity of what is there now: what is not the last run's own is left alone.
    """
    if isinstance(step, TrainStep):
        set_training_aside(config)
    elif isinstance(step, ExportStep) and output is not None and output == marker.output:
        shutil.rmtree(step.output or config.output_dir / step.name)


def set_training_aside(config: RunConfig) -> None:
    """Move the checkpoints, curves and history of an earlier training."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = config.output_dir
    files = (METRICS_FILE, HISTORY_FILE, _CURVES)
    for path in (config.checkpoint_directory, *(folder / name for name in files)):
        if path.exists():
            kept = path.with_name(f"{path.name}.until-{stamp}")
            path.rename(kept)
            logger.warning("the training starts from scratch: what was in %s is now in %s", path, kept)
