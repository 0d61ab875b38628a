"""What tasks found, as the table and the JSON file show it."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import TypeAdapter

from pipeline.shared.files import write_atomically

TASKS_FILE = "tasks.json"
ACCURACY = "acc,none"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One task and what the model made of it.

    Attributes:
        task: name in lm-evaluation-harness.
        version: of the task, as its file has it.
        num_fewshot: solved examples before each question.
        num_samples: questions.
        metrics: value by the harness's name, "metric,filter".
        standard_errors: of those metrics that have one.
        mean_steps: extra steps per token that its requests really took.
        num_tokens: that went through the layers.
        flops_per_token, flops: operations at those steps, per token and for the whole task.
    """

    task: str
    version: str
    num_fewshot: int
    num_samples: int
    metrics: dict[str, float]
    standard_errors: dict[str, float]
    mean_steps: float
    num_tokens: int
    flops_per_token: float
    flops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """What a checkpoint is worth on some tasks.

    Attributes:
        checkpoint, iteration, method, num_latent_thoughts: which model.
        pruning_threshold: tau; None for a method that does not halt.
        limit: questions per task that were asked at most; None: all.
        tasks: the scores.
        groups: metrics of the harness's own groups, by group.
    """

    format: Literal["megaponder.tasks/1"] = "megaponder.tasks/1"
    checkpoint: str
    iteration: int
    method: str
    num_latent_thoughts: int
    pruning_threshold: float | None
    limit: int | None
    tasks: tuple[TaskScore, ...]
    groups: dict[str, dict[str, float]]

    @property
    def mean_accuracy(self) -> float | None:
        """Mean of the plain accuracies, as the papers average; None where a task has none."""
        values = [score.metrics.get(ACCURACY) for score in self.tasks]
        known = [value for value in values if value is not None]
        return fmean(known) if known and len(known) == len(values) else None


def save_task_report(report: TaskReport, path: Path) -> None:
    """Write the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, TypeAdapter(TaskReport).dump_json(report, indent=1) + b"\n")
