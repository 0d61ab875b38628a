"""What is said when a run ends as planned: what was done, where it lies, and what to do next."""

import shlex

from pipeline.checkpoint.folder import checkpoint_folder
from pipeline.checkpoint.state import TrainState
from pipeline.config.schema import RunConfig
from pipeline.metrics.jsonl import METRICS_FILE
from pipeline.metrics.names import PROFILE_FOLDER, TENSORBOARD_FOLDER
from pipeline.shared.progress import render_duration

__all__ = ["closing_lines"]


def closing_lines(
    config: RunConfig, state: TrainState, *, start_iteration: int, saved_iteration: int
) -> list[str]:
    """Return the last lines of a run.

    Args:
        config: the run.
        state: progress of the run.
        start_iteration: where this process started; the last iteration if there was nothing to do.
        saved_iteration: of the newest checkpoint; 0 for none.
    """
    lines = [_done(config, state, start_iteration)]
    if saved_iteration:
        lines.append(f"  checkpoint  {checkpoint_folder(config.checkpoint_directory, saved_iteration)}")
    lines.append(f"  metrics     {config.output_dir / METRICS_FILE}")
    if config.metrics.tensorboard:
        lines.append(f"  TensorBoard {config.output_dir / TENSORBOARD_FOLDER}")
    if config.profile.steps is not None:
        lines.append(f"  profile     {config.output_dir / PROFILE_FOLDER}")
    return [*lines, "next:", *(f"  {command}" for command in _next(config, state, saved_iteration))]


def _done(config: RunConfig, state: TrainState, start_iteration: int) -> str:
    last = config.training.train_iters
    best = "" if state.best_heldout_loss is None else f"; best held-out loss {state.best_heldout_loss:.4f}"
    if start_iteration == last:
        return f"nothing to do: the run has reached its last iteration, {last:,}{best}"
    here = state.iteration - start_iteration
    resumed = f", {here:,} of them now" if start_iteration else ""
    return (
        f"done: {state.iteration:,} of {last:,} iterations{resumed}, in "
        f"{render_duration(state.training_seconds)} of training{best}"
    )


def _next(config: RunConfig, state: TrainState, saved_iteration: int) -> list[str]:
    run = shlex.quote(str(config.output_dir))
    if state.iteration < config.training.train_iters:
        return ["the same command again, which resumes there", f"megaponder report {run}"]
    commands = [f"megaponder report {run}"]
    if saved_iteration:
        folder = shlex.quote(str(config.checkpoint_directory))
        commands += [
            f"megaponder eval {folder}",
            f"megaponder generate {folder} --prompt 'The first'",
            "the same command with a larger train-iters=N, to train on",
        ]
    return commands
