"""Answer a rank's lack of memory: what the plan says, what the allocator held, and what to change."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

from megatron_ext.device import device_memory_bytes, device_name, memory_report, most_memory_bytes
from megatron_ext.parallel.groups import ParallelGroups
from pipeline.config.schema import RunConfig
from pipeline.cost.peaks import GIB, Device
from pipeline.cost.plan import Assumptions, RunPlan, plan_run
from pipeline.cost.suggest import Suggestion, suggest
from pipeline.cost.table import render_memory
from pipeline.ranks.final_error import note_final_error
from pipeline.ranks.gpu_variables import STACKS_FOLDER
from pipeline.shared.console import as_text
from pipeline.shared.errors import OutOfMemoryError, UserError
from pipeline.step.build import open_training_split, vocab_size_of

__all__ = ["answering_out_of_memory", "is_out_of_memory", "memory_file"]

logger = logging.getLogger(__name__)

# As `megaponder plan` assumes for what tensors cannot have.
_RESERVE_BYTES = 6 * GIB
_TABLE_WIDTH = 100
_MOST_SUGGESTIONS = 3
# torch has a class for devices only.
_OF_THE_HOST = "can't allocate memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device, or this machine, has no memory left for tensors."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _OF_THE_HOST in str(error)
    )


def memory_file(config: RunConfig, rank: int) -> Path:
    """Return where a rank writes what its allocator held when memory ran out."""
    return config.output_dir / STACKS_FOLDER / f"rank_{rank:05d}.memory.txt"


@contextmanager
def answering_out_of_memory(config: RunConfig, groups: ParallelGroups) -> Iterator[None]:
    """Wrap the work of a rank.

    Raises:
        OutOfMemoryError: in place of torch's, with the plan of the run and what to change; also logged, as
            only the first rank reports errors.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # Before anything else: it describes what is held now.
        summary = memory_report()
        finding = _finding(groups, error)
        # Before the answer, which takes a while: other ranks may fail meanwhile.
        note_final_error(OutOfMemoryError.exit_code, finding)
        answer = OutOfMemoryError(_answer(config, groups, finding, has_summary=bool(summary)))
        _write_summary(summary, memory_file(config, groups.rank))
        if groups.rank != 0:
            logger.error("%s", answer)
        raise answer from error


def _finding(groups: ParallelGroups, error: RuntimeError) -> str:
    return (
        f"rank {groups.rank} (pipeline stage {groups.pp_rank}) must find memory for its tensors, but "
        f"{device_name()} has none left: {str(error).splitlines()[0]}"
    )


def _answer(config: RunConfig, groups: ParallelGroups, finding: str, *, has_summary: bool) -> str:
    lines = [finding]
    used = most_memory_bytes()
    if used is not None:
        lines.append(f"most that tensors of this rank have taken: {used / GIB:.2f} GiB")
    if has_summary:
        lines.append(f"what the allocator held: {memory_file(config, groups.rank)}")
    return "\n".join([*lines, *_advice(config)])


def _advice(config: RunConfig) -> list[str]:
    """Return the plan's table, and the settings with which the run fits according to the plan."""
    try:
        vocab_size = vocab_size_of(config, open_training_split(config))
    except (UserError, OSError):
        return ["`megaponder plan` says what the run needs"]
    total = (device_memory_bytes() or (0, psutil.virtual_memory().total))[1]
    # Only the memory counts here, not the speed.
    here = Device(name=device_name(), memory_bytes=total, peak=None)
    assumptions = Assumptions(device=here, reserve_bytes=_RESERVE_BYTES)
    plan = plan_run(config, vocab_size, assumptions)
    return [
        as_text(render_memory(plan), width=_TABLE_WIDTH),
        *_changes(plan, suggest(config, vocab_size, assumptions)),
    ]


def _changes(plan: RunPlan, suggestions: list[Suggestion]) -> list[str]:
    total = plan.assumptions.device.memory_bytes
    needed = f"the plan needs {plan.fullest.peak / GIB:.2f} GiB for tensors, of {total / GIB:.2f} GiB"
    if plan.fits:
        needed += ": it fits, so look for other processes on the device (nvidia-smi)"
    found = [suggestion for suggestion in suggestions if suggestion.overrides][:_MOST_SUGGESTIONS]
    if not found:
        return [needed, "what to change: plan with more devices (`megaponder plan --gpus N`)"]
    ways = [
        f"  {' '.join(each.overrides)}  ({each.plan.fullest.peak / GIB:.2f} GiB, {each.relative_cost:.2f} "
        "times the time)"
        for each in found
    ]
    return [needed, "what to change, cheapest first:", *ways]


def _write_summary(summary: str, path: Path) -> None:
    if not summary:
        return
    # A folder that cannot be written must not hide the error.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(summary, encoding="utf-8")
