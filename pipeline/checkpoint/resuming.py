"""Which checkpoint a run resumes from: the newest that is intact."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch.distributed

from pipeline.checkpoint.agreement import on_all_ranks, on_rank_zero
from pipeline.checkpoint.checksums import Damage, describe_damage, find_damage, share_files
from pipeline.checkpoint.folder import TRACKER_NAME, checkpoint_folder, clean_up, iterations_in
from pipeline.checkpoint.tracker import listed, tracked_iteration
from pipeline.shared.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The checkpoints that a run may resume from.

    Attributes:
        folders: in the order in which to try them.
        complaint: what is wrong with the tracker; None if it names the first of the folders.
        passed_over: iterations that are newer than the one the tracker names.
    """

    folders: tuple[Path, ...]
    complaint: str | None
    passed_over: tuple[int, ...] = ()

    @property
    def is_new_run(self) -> bool:
        """Whether nothing was ever saved."""
        return not self.folders and not self.passed_over and self.complaint is None


def find_intact_checkpoint(directory: Path, *, reads: bool) -> Path | None:
    """Return the checkpoint to resume from; all ranks call it together and get the same.

    What an interrupted save left is cleaned up first. Then the tracker's checkpoint and the older ones are
    tried, newest first; damaged ones are reported and skipped.

    Args:
        directory: folder of the run's checkpoints.
        reads: compare checksums; otherwise only presence and sizes of files.
    Returns:
        A checkpoint's folder, or None if nothing was ever saved.
    Raises:
        CheckpointError: checkpoints were saved, but none of them is intact.
    """
    candidates = on_rank_zero(lambda: _clean_up_and_list(directory))
    if candidates.is_new_run:
        return None
    if candidates.complaint is not None:
        _warn("%s", candidates.complaint)
    for folder in candidates.folders:
        damage = damage_on_all_ranks(folder, reads=reads)
        if not damage:
            if folder != candidates.folders[0] or candidates.complaint is not None:
                _warn("resuming from %s, the newest checkpoint that is intact", folder)
            return folder
        _warn("DAMAGED CHECKPOINT %s: %s", folder, describe_damage(damage))
    raise CheckpointError(_nothing_intact(directory, candidates))


def list_candidates(directory: Path) -> Candidates:
    """Order the checkpoints of a run: the tracker's, then the older ones, newest first.

    If the tracker names no iteration, all are taken, newest first. Checkpoints newer than the tracker's are
    never taken: a user who went back to an older one abandoned them.
    """
    iterations = iterations_in(directory)
    complaint = None
    newest = max(iterations, default=0)
    try:
        tracked = tracked_iteration(directory)
    except CheckpointError as error:
        tracked, complaint = None, str(error)
    if tracked is None and iterations and complaint is None:
        complaint = f"{directory / TRACKER_NAME} is missing next to iteration(s) {listed(iterations)}"
    if tracked is not None:
        newest = tracked
        if tracked not in iterations:
            complaint = f"{directory / TRACKER_NAME} names iteration {tracked}, which does not exist"
    chosen = [number for number in reversed(iterations) if number <= newest]
    return Candidates(
        folders=tuple(checkpoint_folder(directory, number) for number in chosen),
        complaint=complaint,
        passed_over=tuple(number for number in iterations if number > newest),
    )


def check_intact(folder: Path, *, reads: bool) -> None:
    """Check that a checkpoint is intact before it is used; all ranks call it together.

    Raises:
        CheckpointError: it is damaged.
    """
    damage = damage_on_all_ranks(folder, reads=reads)
    if damage:
        raise CheckpointError(
            f"{folder} must be intact, but {describe_damage(damage)}; use another one with --iteration "
            f"(megaponder checkpoint list {folder.parent})"
        )


def damage_on_all_ranks(folder: Path, *, reads: bool) -> list[Damage]:
    """Check a checkpoint against its checksums, each rank a share of the files; all ranks get all damage."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found = on_all_ranks(
        lambda: find_damage(folder, names=share_files(folder, rank=rank, world_size=world_size), reads=reads)
    )
    # By text: if the list of checksums cannot be read, every rank reports the same.
    damage = {str(item): item for of_rank in found for item in of_rank}
    return [damage[text] for text in sorted(damage)]


def _clean_up_and_list(directory: Path) -> Candidates:
    clean_up(directory)
    return list_candidates(directory)


def _nothing_intact(directory: Path, candidates: Candidates) -> str:
    newer = ""
    if candidates.passed_over:
        newer = (
            f", and iteration(s) {listed(list(candidates.passed_over))} are newer than the tracker's: write "
            "one of them into the tracker to resume from it"
        )
    return (
        f"{directory} must hold an intact checkpoint to resume from, but holds none{newer}; restore one from "
        "a copy, or start from scratch in another folder; megaponder checkpoint verify lists what is damaged"
    )


def _warn(message: str, *arguments: object) -> None:
    if torch.distributed.get_rank() == 0:
        logger.warning(message, *arguments)
