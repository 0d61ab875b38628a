"""The one training of a run: its folders, locked by the launcher or by the first rank."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.ranks.environment import Ranks
from pipeline.shared.files import resolved_output
from pipeline.shared.folder_lock import folder_lock

__all__ = ["run_lock"]


@contextmanager
def run_lock(*folders: Path, work: str) -> Iterator[None]:
    """Let no other command write the folders of a run while this one does.

    Ranks that a launcher of ours has started belong to it, and further ranks to the first one.

    Args:
        folders: the run's, and that of its checkpoints.
        work: what this process does, as a command.
    Raises:
        FolderInUseError: another process writes one of them.
        DataError: one cannot be written.
    """
    with ExitStack() as locks:
        if Ranks.from_environment().rank == 0:
            # Two names may mean one folder.
            for folder in dict.fromkeys(resolved_output(folder) for folder in folders):
                locks.enter_context(folder_lock(folder, work))
        yield
