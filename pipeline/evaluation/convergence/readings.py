"""Passes and time of reading prompts by Jacobi, damped and Gauss-Seidel sweeps, to the same tolerance."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

from torch import Tensor

from megatron_ext.decoding import BatchDecoder
from megatron_ext.device import synchronize
from megatron_ext.model.model import PonderModel
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.ponder.decode.think import ignore
from pipeline.evaluation.convergence.result import Reading

# Jacobi first.
WAYS = (
    Sweeps(),
    Sweeps(damping=0.1),
    Sweeps(damping=0.3),
    Sweeps(num_groups=2),
    Sweeps(num_groups=4),
    Sweeps(by_slot=True),
)
NUM_ROUNDS = 3
# The prompts that are read together, and of which logits are held.
MOST_PROMPTS = 16


def measured_readings(
    model: PonderModel,
    prompts: Sequence[Sequence[int]],
    *,
    tolerance: float,
    ways: Sequence[Sweeps] = WAYS,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Reading, ...]:
    """Read the longest prompts in every way; all tensor-parallel ranks call it together.

    Args:
        model: in evaluation mode, on one pipeline stage.
        prompts: at least one.
        tolerance: until which they are swept.
        ways: to sweep, without a tolerance.
        advance: called after every way.
    """
    longest = sorted(prompts, key=len, reverse=True)[:MOST_PROMPTS]
    decoder = BatchDecoder(model, num_sequences=len(longest), max_tokens=len(longest[0]))

    def read(sweeps: Sweeps | None) -> list[Tensor]:
        found = decoder.read_prompts(range(len(longest)), longest, sweeps=sweeps)
        return [prompt.logits for prompt in found]

    kinds = [replace(way, tolerance=tolerance) for way in ways]
    exact, readings = read(None), []
    for sweeps in kinds:
        decoder.observe = rows = _Rows()
        errors = [float((one - other).abs().max()) for one, other in zip(read(sweeps), exact, strict=True)]
        readings.append(
            Reading(
                damping=sweeps.damping,
                num_groups=sweeps.num_groups,
                by_slot=sweeps.by_slot,
                num_calls=rows.num_calls,
                rows_per_token=rows.num_rows / sum(map(len, longest)),
                milliseconds=0.0,
                max_error=max(errors),
            )
        )
        advance()
    decoder.observe = ignore
    # In turns, so that a drift of the machine's speed affects all alike.
    rounds = [[_seconds(partial(read, sweeps)) for sweeps in kinds] for _ in range(NUM_ROUNDS)]
    times = [1000 * median(of_kind) for of_kind in zip(*rounds, strict=True)]
    return tuple(replace(one, milliseconds=taken) for one, taken in zip(readings, times, strict=True))


class _Rows:
    """Counts the trips through the layers, and their rows."""

    def __init__(self) -> None:
        self.num_calls = self.num_rows = 0

    def __call__(self, name: str, value: Tensor) -> None:
        if name == "rows/entered":
            self.num_calls += 1
            self.num_rows += value.shape[1]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started
