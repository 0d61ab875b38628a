"""Timing of several ways to do the same thing, in turns."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

from pipeline.shared.progress import Progress


def median_seconds(
    ways: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    device: torch.device,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Time each way `repeats` times, in turns, after one untimed round.

    Because the ways take turns, a drift of the machine's speed affects all equally and leaves their ratio.

    Args:
        ways: functions to run, by name.
        repeats: timed rounds, at least 1.
        device: synchronized before the clock is read.
        progress: of rounds, the untimed one included.

    Returns:
        median seconds by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
        if progress is not None:
            progress.advance()
    return {name: median(taken) for name, taken in seconds.items()}
