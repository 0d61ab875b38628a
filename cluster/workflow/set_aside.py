"""Making room for a step that starts anew: what an earlier run of it has left is kept under other names."""

import logging
import shutil
from datetime import UTC, datetime

from cluster.workflow.marker import Marker
from cluster.workflow.todo import StepState, differing
from pipeline.config.schema import RunConfig
from pipeline.config.workflow_section import ExportStep, WorkflowStep

logger = logging.getLogger(__name__)

# A longer training goes on from the shorter one.
_CONTINUES = "training.train_iters"


def starts_anew(state: StepState, *, job: str, again: bool) -> bool:
    """Tell whether a step must not go on from what its last run left.

    Args:
        state: of the step.
        job: folder of the job that runs it now; a job that was interrupted goes on from its own.
        again: it was asked to run although it is done.
    """
    marker = state.marker
    if marker is None:
        return False
    if again:
        return marker.job != job
    before, now = dict(marker.settings), dict(state.settings)
    before.pop(_CONTINUES, None)
    now.pop(_CONTINUES, None)
    as_before = marker.model_copy(update={"settings": before})
    asked = StepState(
        name=state.name,
        needs=state.needs,
        settings=now,
        inputs=state.inputs,
        output=state.output,
        marker=marker,
    )
    return bool(differing(as_before, asked))


def set_aside(config: RunConfig, step: WorkflowStep, marker: Marker, output: str | None) -> None:
    """Move the checkpoints and curves of an earlier training, and remove an earlier export of this step.

    Args:
        config: of the run.
        step: which starts anew.
        marker: of its last run.
        output: identity of what lies there now: what is not the last run's own is left alone.
    """
    if step.command == "train":
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = config.output_dir
        for path in (config.checkpoint_directory, folder / "metrics.jsonl", folder / "tensorboard"):
            if path.exists():
                kept = path.with_name(f"{path.name}.until-{stamp}")
                path.rename(kept)
                logger.warning("the step starts anew: what was in %s is in %s now", path, kept)
    elif isinstance(step, ExportStep) and output is not None and output == marker.output:
        shutil.rmtree(step.output or config.output_dir / step.name)
