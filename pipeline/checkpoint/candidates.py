"""In which order a run that resumes tries its checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.folder import TRACKER_NAME, checkpoint_folder, iterations_in
from pipeline.checkpoint.tracker import listed, tracked_iteration
from pipeline.shared.errors import CheckpointError


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
