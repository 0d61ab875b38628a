"""Tasks of lm-evaluation-harness: which are asked, and what a checkpoint scores on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically

TASKS_FILE = "tasks.json"
ACCURACY = "acc,none"

# The tasks that the papers on pondering report.
PAPERS_7 = "papers-7"
PAPERS_9 = "papers-9"

# Those with listed results of AdaPonderLM; which seven PonderLM-3 averages over is not verified.
_SEVEN = ("lambada_openai", "arc_easy", "arc_challenge", "winogrande", "piqa", "hellaswag", "race")
_NINE = (
    "lambada_openai",
    "lambada_standard",
    "arc_easy",
    "arc_challenge",
    "winogrande",
    "piqa",
    "hellaswag",
    "sciq",
    "race",
)
TASK_GROUPS = {PAPERS_7: _SEVEN, PAPERS_9: _NINE}


def expand_task_names(names: Sequence[str]) -> tuple[str, ...]:
    """Replace groups by their tasks; a task that is named several times stays where it is named first."""
    return tuple(dict.fromkeys(task for name in names for task in TASK_GROUPS.get(name, (name,))))


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """Which tasks are asked, and how.

    Attributes:
        names: of tasks, groups and tags of the harness, or paths of task files.
        include_path: a folder of further task files.
        num_fewshot: solved examples before each question; None as each task says.
        limit: questions per task at most; None asks all.
        batch_size: texts that a replica reads or continues together.
    """

    names: tuple[str, ...]
    include_path: Path | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 16


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """The scores of a model on one task, and what they cost.

    Attributes:
        task: name in lm-evaluation-harness.
        version: of the task, as its file has it.
        num_fewshot: solved examples before each question.
        num_samples: questions.
        metrics: value by the harness's name, "metric,filter".
        standard_errors: of those metrics that have one.
        mean_steps: extra steps per token that its requests took.
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


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """The scores of a checkpoint on some tasks.

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
    """Write the file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{task_report_text(report)}\n")


def task_report_text(report: TaskReport) -> str:
    """Return the content of the file."""
    return TypeAdapter(TaskReport).dump_json(report, indent=1).decode()


def load_task_report(path: Path) -> TaskReport:
    """Read the file.

    Raises:
        DataError: it is not such a file.
    """
    try:
        return TypeAdapter(TaskReport).validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path} must be scores on tasks, but is not; write it again. Found: {error}"
        ) from error
