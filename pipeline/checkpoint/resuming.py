"""Which checkpoint a run goes on from: the newest that is whole."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch.distributed

from pipeline.checkpoint.agreement import on_all_ranks, on_rank_zero
from pipeline.checkpoint.checksums import Damage, find_damage, share_files
from pipeline.checkpoint.folder import TRACKER_NAME, checkpoint_folder, clear_up, iterations_in
from pipeline.checkpoint.tracker import listed, tracked_iteration
from pipeline.shared.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What there is to resume from.

    Attributes:
        folders: to be tried in this order.
        complaint: what is wrong with the tracker; None where it names the first of them.
        passed_over: iterations that lie after the one the tracker names.
    """

    folders: tuple[Path, ...]
    complaint: str | None
    passed_over: tuple[int, ...] = ()

    @property
    def is_new_run(self) -> bool:
        """Whether nothing was ever saved."""
        return not self.folders and not self.passed_over and self.complaint is None


def list_candidates(directory: Path) -> Candidates:
    """Order the checkpoints of a run: the tracker's, then the older ones, newest first.

    Where the tracker names no iteration, all are taken, newest first. What lies after the tracker's was
    abandoned by somebody who went back, and is not taken.
    """
    iterations = iterations_in(directory)
    complaint = None
    newest = max(iterations, default=0)
    try:
        tracked = tracked_iteration(directory)
    except CheckpointError as error:
        tracked, complaint = None, str(error)
    if tracked is None and iterations and complaint is None:
        complaint = f"{directory / TRACKER_NAME} is missing beside iteration(s) {listed(iterations)}"
    if tracked is not None:
        newest = tracked
        if tracked not in iterations:
            complaint = f"{directory / TRACKER_NAME} names iteration {tracked}, which is not there"
    chosen = [number for number in reversed(iterations) if number <= newest]
    return Candidates(
        folders=tuple(checkpoint_folder(directory, number) for number in chosen),
        complaint=complaint,
        passed_over=tuple(number for number in iterations if number > newest),
    )


def find_whole_checkpoint(directory: Path, *, reads: bool) -> Path | None:
    """Return the checkpoint to go on from; all ranks call it together and get the same.

    First what an interrupted save left is brought into order. Then the tracker's checkpoint and the older
    ones are tried, newest first; what is damaged is named and passed over.

    Args:
        directory: folder of the run's checkpoints.
        reads: whether checksums are compared; else only presence and sizes of files.
    Returns:
        A checkpoint's folder, or None where nothing was ever saved.
    Raises:
        CheckpointError: checkpoints were saved, but none of them is whole.
    """
    candidates = on_rank_zero(lambda: _tidy_and_list(directory))
    if candidates.is_new_run:
        return None
    if candidates.complaint is not None:
        _warn("%s", candidates.complaint)
    for folder in candidates.folders:
        damage = damage_on_all_ranks(folder, reads=reads)
        if not damage:
            if folder != candidates.folders[0] or candidates.complaint is not None:
                _warn("going on from %s, the newest checkpoint that is whole", folder)
            return folder
        _warn("DAMAGED CHECKPOINT %s: %s", folder, describe(damage))
    raise CheckpointError(_nothing_whole(directory, candidates))


def refuse_damage(folder: Path, *, reads: bool) -> None:
    """Make sure that a checkpoint is whole before it is used; all ranks call it together.

    Raises:
        CheckpointError: it is not.
    """
    damage = damage_on_all_ranks(folder, reads=reads)
    if damage:
        raise CheckpointError(
            f"{folder} must be whole, but {describe(damage)}; use another one with --iteration "
            f"(megaponder checkpoint list {folder.parent})"
        )


def damage_on_all_ranks(folder: Path, *, reads: bool) -> list[Damage]:
    """Hold a checkpoint against its list, each rank a share of the files; the same result on all ranks."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found = on_all_ranks(
        lambda: find_damage(folder, names=share_files(folder, rank=rank, world_size=world_size), reads=reads)
    )
    # By text: without a readable list, every rank finds the same.
    damage = {str(item): item for of_rank in found for item in of_rank}
    return [damage[text] for text in sorted(damage)]


def describe(damage: list[Damage]) -> str:
    """Name the damaged files in a message."""
    return "; ".join(str(item) for item in damage[:10]) + (" ..." if len(damage) > 10 else "")


def _tidy_and_list(directory: Path) -> Candidates:
    clear_up(directory)
    return list_candidates(directory)


def _nothing_whole(directory: Path, candidates: Candidates) -> str:
    newer = ""
    if candidates.passed_over:
        newer = (
            f", and iteration(s) {listed(list(candidates.passed_over))} lie after the tracker's: write one "
            "of them into the tracker to go on from it;"
        )
    return (
        f"{directory} must hold a whole checkpoint to go on from, but none is{newer or ';'} restore one "
        "from a copy, or start anew in another folder; megaponder checkpoint verify says what is damaged"
    )


def _warn(message: str, *arguments: object) -> None:
    if torch.distributed.get_rank() == 0:
        logger.warning(message, *arguments)
