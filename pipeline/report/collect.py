"""Collect the content of a report from the files of a run."""

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.checkpoint.checksums import CHECKSUMS_NAME
from pipeline.checkpoint.folder import CONFIG_NAME
from pipeline.cost.flops import FlopsAccount
from pipeline.evaluation.results import (
    EVALUATION_FILE,
    EvaluationResult,
    TextSample,
    load_evaluation,
    load_sample,
)
from pipeline.evaluation.tasks import TASKS_FILE, TaskReport, load_task_report
from pipeline.metrics import names
from pipeline.metrics.jsonl import METRICS_FILE, TRAINING, VALIDATION, curve, read_events
from pipeline.metrics.ponder_scalars import fractions, mean_steps_of
from pipeline.metrics.records import LossPoint
from pipeline.report.data import Command, Points, ReportData
from pipeline.shared.errors import DataError

logger = logging.getLogger(__name__)

# The one of `megaponder generate --output`, and any others that were put next to it.
SAMPLE_FILES = "sample*.json"


def collect_report(
    run_folder: Path,
    *,
    checkpoints: Path | None = None,
    name: str,
    flops: FlopsAccount,
    flops_per_token_train: float,
    facts: tuple[tuple[str, str], ...],
    commands: tuple[Command, ...],
) -> ReportData:
    """Read the metrics, evaluation, samples, task scores and configuration of a run.

    Args:
        run_folder: holds ``metrics.jsonl``, ``evaluation.json``, ``run_config.yaml`` and optionally
            ``tasks.json`` and ``sample*.json``.
        checkpoints: folder of the run's checkpoints; None is ``checkpoints`` in its folder.
        flops: cost account of the model, evaluated at the mean steps on the held-out split.
        flops_per_token_train: of a training step, mean over the run.
        facts: (name, value) rows about the model and the run.
        commands: command lines for looking further into the run.
    Raises:
        FileNotFoundError: one of the three required files is missing.
        DataError: the evaluation is one of another run's checkpoint.
    """
    checkpoints = checkpoints or run_folder / "checkpoints"
    events = read_events(run_folder / METRICS_FILE)
    evaluation = load_evaluation(run_folder / EVALUATION_FILE)
    _refuse_other_run(evaluation.checkpoint, checkpoints, run_folder / EVALUATION_FILE)
    seq_length = flops.shape.seq_length
    halts = sum(evaluation.steps_count) > 0
    mean_steps = mean_steps_of(evaluation.steps_count) if halts else float(evaluation.num_latent_thoughts)
    shares = fractions(evaluation.steps_count) if halts else None
    return ReportData(
        name=name,
        method=evaluation.method,
        facts=facts,
        training_curve=curve(events, TRAINING, names.LM_LOSS),
        heldout_curve=curve(events, VALIDATION, names.LM_LOSS_VALIDATION),
        heldout_loss=evaluation.loss,
        heldout_tokens=evaluation.num_tokens,
        unigram_entropy=evaluation.unigram_entropy,
        num_latent_thoughts=evaluation.num_latent_thoughts,
        pruning_threshold=evaluation.pruning_threshold,
        steps_count=evaluation.steps_count,
        mean_steps_curve=curve(events, TRAINING, names.MEAN_STEPS),
        pruned_curves=_pruned_curves(events, evaluation.num_latent_thoughts),
        nll_by_steps=evaluation.nll_by_steps,
        loss_quartiles=evaluation.loss_quartiles,
        residuals=evaluation.residuals,
        steps_allowed=_steps_allowed(events),
        flops_per_token_train=flops_per_token_train,
        flops_per_token_infer=flops.inference_per_token(mean_steps, shares=shares),
        flops_saved=flops.saved_fraction(mean_steps, shares=shares) if halts else None,
        training_tokens_per_second=_median(curve(events, TRAINING, names.TOKENS_PER_SECOND)),
        samples=_samples_of(sorted(run_folder.glob(SAMPLE_FILES)), checkpoints),
        commands=commands,
        config_yaml=(run_folder / CONFIG_NAME).read_text(encoding="utf-8"),
        checkpoint=evaluation.checkpoint,
        speeds=evaluation.speeds,
        worth=evaluation.worth or _worth_by_sweep(events, evaluation, flops),
        training_by_tokens=_by_tokens(events, TRAINING, names.LM_LOSS, seq_length),
        heldout_by_tokens=_by_tokens(events, VALIDATION, names.LM_LOSS_VALIDATION, seq_length),
        learning_rate_curve=curve(events, TRAINING, names.LEARNING_RATE),
        decoupled_rate_curve=curve(events, TRAINING, names.DECOUPLED_LEARNING_RATE),
        grad_norm_curve=curve(events, TRAINING, names.GRAD_NORM),
        tasks=_tasks_of(run_folder / TASKS_FILE, checkpoints),
    )


def _samples_of(paths: Sequence[Path], checkpoints: Path) -> tuple[TextSample, ...]:
    """Read the texts that are of this run."""
    samples = []
    for path in paths:
        sample = load_sample(path)
        if is_of_run(sample.checkpoint, checkpoints):
            samples.append(sample)
        else:
            logger.warning("%s is a text of %s, not of this run, and is left out", path, sample.checkpoint)
    return tuple(samples)


def _tasks_of(path: Path, checkpoints: Path) -> TaskReport | None:
    """Read the scores on tasks if they are of this run."""
    if not path.exists():
        return None
    report = load_task_report(path)
    if is_of_run(report.checkpoint, checkpoints):
        return report
    logger.warning("%s has scores of %s, not of this run, and is left out", path, report.checkpoint)
    return None


def _by_tokens(events: list[dict[str, Any]], kind: str, tag: str, seq_length: int) -> Points:
    """Return the (training tokens, value) points of one tag, without null values."""
    rows = (event for event in events if event["event"] == kind and event.get(tag) is not None)
    return tuple((float(row["consumed_samples"] * seq_length), float(row[tag])) for row in rows)


def _refuse_other_run(checkpoint: str, checkpoints: Path, file: Path) -> None:
    if not is_of_run(checkpoint, checkpoints):
        raise DataError(
            f"{file} must be an evaluation of a checkpoint in {checkpoints}, but is one of {checkpoint}; run "
            f"megaponder eval {checkpoints}"
        )


def is_of_run(checkpoint: str, checkpoints: Path) -> bool:
    """Tell whether a stored path is one of a checkpoint of a run, which may have been moved since.

    Args:
        checkpoint: ``iter_`` folder, as it was when it was measured.
        checkpoints: folder of the run's checkpoints.
    """
    folder = Path(checkpoint)
    if folder.parent.is_dir() and checkpoints.is_dir() and folder.parent.samefile(checkpoints):
        return True
    there, here = (path / CHECKSUMS_NAME for path in (folder, checkpoints / folder.name))
    if there.is_file() and here.is_file():
        return there.read_bytes() == here.read_bytes()
    return folder.parent.name == checkpoints.name


def _worth_by_sweep(
    events: list[dict[str, Any]], evaluation: EvaluationResult, flops: FlopsAccount
) -> tuple[LossPoint, ...]:
    """Return the points with all steps and with none of a method that does not halt.

    They are known where the training evaluated its last checkpoint with fewer steps.
    """
    last = [event for event in events if event["iteration"] == evaluation.iteration]
    losses, most = dict(_steps_allowed(last)), evaluation.num_latent_thoughts
    if most == 0 or 0.0 not in losses:
        return ()
    return tuple(
        LossPoint(
            step_limit=limit,
            loss=loss,
            mean_steps=steps,
            flops_per_token=flops.limited_to(steps).inference_per_token(steps),
            speeds=speeds,
        )
        for limit, steps, loss, speeds in (
            (None, most, evaluation.loss, evaluation.speeds),
            (0, 0, losses[0.0], ()),
        )
    )


def _steps_allowed(events: list[dict[str, Any]]) -> Points:
    sweeps = [event[names.EVAL_SWEEP] for event in events if names.EVAL_SWEEP in event]
    points = sweeps[-1] if sweeps else []
    return tuple(
        (float(point["value"]), float(point["loss"]))
        for point in points
        if point["kind"] == "steps" and point["loss"] is not None
    )


def _pruned_curves(events: list[dict[str, Any]], num_latent_thoughts: int) -> tuple[Points, ...]:
    tags = [names.per_step(names.ACTIVE_FRACTION, step) for step in range(1, num_latent_thoughts + 1)]
    active = [curve(events, TRAINING, tag) for tag in tags]
    return tuple(tuple((at, 1 - value) for at, value in points) for points in active if points)


def _median(points: Points) -> float | None:
    return median(value for _, value in points) if points else None
