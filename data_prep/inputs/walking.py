"""Walk folders and match globs. Links to folders are followed, and every folder is entered once."""

import fnmatch
import glob
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.shared.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder, and the names in it that are not folders, sorted."""

    path: Path
    names: tuple[str, ...]


def walk(root: Path, is_entered: Callable[[Path], bool] = lambda folder: True) -> Iterator[Folder]:
    """Yield a folder and all folders below it.

    Real folders come before linked ones: a link changes no name of a file that is also reached without it.

    Args:
        root: a folder.
        is_entered: selects the folders below.
    Raises:
        DataError: a folder cannot be listed.
    """
    visited: set[tuple[int, int]] = set()
    real, linked = deque([root]), deque[Path]()
    while real or linked:
        folder = real.popleft() if real else linked.popleft()
        status, entries = _listed(folder)
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        names = []
        for entry in entries:
            if not _is_folder(entry):
                names.append(entry.name)
            elif is_entered(folder / entry.name):
                (linked if entry.is_symlink() else real).append(folder / entry.name)
        yield Folder(path=folder, names=tuple(names))


def _listed(folder: Path) -> tuple[os.stat_result, list[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            return folder.stat(), sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"the folder {folder} must be readable, but cannot be listed ({error.strerror}); change its "
            "permissions, or name the folders to read"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads to itself


def match_glob(pattern: str) -> list[Path]:
    """Return the files and folders that a pattern matches, sorted; ``**`` matches folders at any depth.

    Raises:
        DataError: a folder cannot be listed.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        return sorted(Path(found) for found in glob.glob(pattern))  # noqa: PTH207 (patterns may be absolute)
    # Python's own ** follows every chain of links, of which two loops have endlessly many.
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    if not root.is_dir():
        return []
    found = []
    for folder in walk(root):
        places = [folder.path, *(folder.path / name for name in folder.names)]
        found += [path for path in places if _fits(path.relative_to(root).parts, parts[first:])]
    return sorted(found)


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        return _fits(names, parts[1:]) or (
            len(names) > 0 and not names[0].startswith(".") and _fits(names[1:], parts)
        )
    if not names or (names[0].startswith(".") and not parts[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])
