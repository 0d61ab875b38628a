"""Preparation with more workers than this machine has, worked out from what was measured with few."""

import math
from dataclasses import dataclass

from data_prep.plan import default_shard_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingModel:
    """What was measured.

    Attributes:
        worker_bytes_per_second: text that one worker tokenizes.
        task_overhead_seconds: of a task beside its text. All of it is taken to pass through the one process
            that hands tasks out, which is more than does.
        start_seconds: until the workers work, and after.
    """

    worker_bytes_per_second: float
    task_overhead_seconds: float
    start_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What follows for a number of workers; ``efficiency`` is 1 where they are all busy all the time."""

    num_workers: int
    num_tasks: int
    seconds: float
    efficiency: float


def compute_scaling(model: ScalingModel, *, text_bytes: int, num_workers: int) -> Scaling:
    """Lay the tasks of a corpus out over workers: in rounds, no faster than they are handed out.

    Args:
        model: what was measured.
        text_bytes: of the corpus, cut into shards as the preparation cuts it.
        num_workers: at least 1.
    """
    num_tasks = math.ceil(text_bytes / default_shard_bytes(text_bytes))
    text_seconds = text_bytes / num_tasks / model.worker_bytes_per_second
    task_seconds = text_seconds + model.task_overhead_seconds
    rounds = math.ceil(num_tasks / num_workers)
    seconds = model.start_seconds + max(rounds * task_seconds, num_tasks * model.task_overhead_seconds)
    alone = num_tasks * text_seconds
    return Scaling(
        num_workers=num_workers,
        num_tasks=num_tasks,
        seconds=seconds,
        efficiency=alone / num_workers / seconds,
    )
