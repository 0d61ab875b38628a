"""What a rank leaves behind when it fails alone with an error that no other start of the run would cure.

The others fail for it, by a signal if NCCL aborts them, and may leave first; the rank itself may be killed
before it has left. So launchers that restart a run cannot tell from exit codes alone that they should not.
They name a file for each start of all ranks, and the rank writes its code and reason there at once.

The script of a SLURM job reads the same, see `cluster/slurm/job.sbatch.j2`.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.shared.files import write_atomically

__all__ = ["FINAL_ERROR_NAME", "FINAL_ERROR_VARIABLE", "FinalError", "note_final_error", "read_final_error"]

logger = logging.getLogger(__name__)

FINAL_ERROR_VARIABLE = "MEGAPONDER_FINAL_ERROR_FILE"
"""Environment variable of a rank: where it writes such an error; unset where nothing restarts the run."""

FINAL_ERROR_NAME = "final_error"
"""The file, in a folder of one start of all ranks."""

_MOST_CHARACTERS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalError:
    """Why a run ends for good.

    Attributes:
        exit_code: with which the run is to end.
        reason: one line.
    """

    exit_code: int
    reason: str


def note_final_error(exit_code: int, reason: str) -> None:
    """Tell the launcher that no restart would cure the error of this rank.

    Args:
        exit_code: of the rank, when it has left.
        reason: which rank, and why; only its first line is kept.
    """
    place = os.environ.get(FINAL_ERROR_VARIABLE)
    if not place:
        return
    line = next(iter(reason.splitlines()), "")[:_MOST_CHARACTERS]
    try:
        write_atomically(Path(place), f"{exit_code}\n{line}\n")
    except OSError as error:
        # It must not hide the error itself.
        logger.warning("%s could not be written (%s): a launcher may restart the run", place, error)


def read_final_error(path: Path) -> FinalError | None:
    """Return what a rank has left; None if none has."""
    try:
        code, _, reason = path.read_text(encoding="utf-8").partition("\n")
        return FinalError(exit_code=int(code), reason=reason.strip())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read: %s", path, error)
        return None
