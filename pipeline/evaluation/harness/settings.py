"""What is asked of lm-evaluation-harness."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """Which tasks, and how.

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
