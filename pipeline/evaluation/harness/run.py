"""Run tasks of lm-evaluation-harness on a checkpoint."""

import os
import random
from collections.abc import Mapping
from typing import Any

import numpy
from lm_eval.evaluator import evaluate

from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits
from pipeline.cost.account import flops_account
from pipeline.cost.flops import FlopsAccount
from pipeline.evaluation.costs import RealizedCost
from pipeline.evaluation.harness.loading import LoadedTasks, load_tasks
from pipeline.evaluation.harness.model import CheckpointModel
from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.evaluation.tasks import TaskReport, TaskScore, TaskSettings

# The seeds of the harness's own command, so that the same examples are drawn.
_RANDOM_SEED, _FEWSHOT_SEED = 0, 1234
# Resamples for the standard error of metrics that have no formula for it.
_BOOTSTRAP_SAMPLES = 1000


def run_tasks(
    checkpoint: OpenedCheckpoint, settings: TaskSettings, *, limits: StepLimits = UNLIMITED
) -> TaskReport:
    """Run tasks on a checkpoint; every rank calls this and gets the complete report.

    Args:
        checkpoint: the model.
        settings: which tasks, and how.
        limits: on the steps that tokens take.
    Raises:
        DataError: a task does not exist, its data cannot be loaded, or it needs what the model cannot do.
    """
    # The harness would otherwise start a process per core for resampling.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    loaded = load_tasks(settings)
    for task in loaded["tasks"].values():
        _set_examples(task, settings.num_fewshot)
    random.seed(_RANDOM_SEED)
    numpy.random.seed(_FEWSHOT_SEED)
    model = CheckpointModel(checkpoint, batch_size=settings.batch_size, limits=limits)
    found: Mapping[str, Any] = evaluate(
        model,
        loaded,
        limit=settings.limit,
        # Standard errors are shown by the first rank alone.
        bootstrap_iters=_BOOTSTRAP_SAMPLES if checkpoint.groups.rank == 0 else 0,
        log_samples=False,
    )
    return _report(checkpoint, settings, loaded, found, model.costs, limits)


def _set_examples(task: Any, num_fewshot: int | None) -> None:
    """Set the number of solved examples; a task that says 0 itself takes none, as in the harness."""
    own = task.get_config("num_fewshot")
    if num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def _report(
    checkpoint: OpenedCheckpoint,
    settings: TaskSettings,
    loaded: LoadedTasks,
    found: Mapping[str, Any],
    costs: Mapping[str, RealizedCost],
    limits: StepLimits,
) -> TaskReport:
    ponder = checkpoint.module.ponder.under(limits).config
    account = flops_account(checkpoint.config, checkpoint.heldout.vocabulary.size)
    account = account.limited_to(ponder.num_latent_thoughts)
    return TaskReport(
        checkpoint=str(checkpoint.folder),
        iteration=checkpoint.state.iteration,
        method=ponder.method,
        num_latent_thoughts=ponder.num_latent_thoughts,
        pruning_threshold=ponder.pruning_threshold if ponder.method.halts else None,
        limit=settings.limit,
        tasks=tuple(
            _score(name, found, costs.get(name, RealizedCost()), account) for name in loaded["tasks"]
        ),
        groups={name: _metrics(found["results"][name]) for name in loaded["groups"]},
    )


def _score(task: str, found: Mapping[str, Any], cost: RealizedCost, account: FlopsAccount) -> TaskScore:
    values = found["results"][task]
    return TaskScore(
        task=task,
        version=str(found["versions"].get(task, "")),
        num_fewshot=int(found["n-shot"].get(task, 0)),
        num_samples=int(found["n-samples"][task]["effective"]),
        metrics=_metrics(values),
        standard_errors={
            name.replace("_stderr", ""): float(value)
            for name, value in values.items()
            if "_stderr" in name and isinstance(value, int | float)
        },
        mean_steps=cost.mean_steps,
        num_tokens=cost.num_tokens,
        flops_per_token=cost.flops_per_token(account),
        flops=cost.total_flops(account),
    )


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics, which are named "metric,filter", without names and standard errors."""
    return {
        name: float(value)
        for name, value in values.items()
        if "," in name and "_stderr" not in name and isinstance(value, int | float)
    }
