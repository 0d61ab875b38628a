"""The checksums of a checkpoint's files, against which it is verified.

``checksums.json``: ``{"algorithm": "sha256", "files": {name: {"bytes": size, "sha256": digest}}}``. It is the
last file written into the folder, and lists all others.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.shared.errors import CheckpointError
from pipeline.shared.files import write_atomically
from pipeline.shared.foreign_files import read_json_object, regular_size

CHECKSUMS_NAME = "checksums.json"
_ALGORITHM = "sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """Size and content of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What is wrong with one file of a checkpoint."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file} {self.reason}"


def digest_file(path: Path, *, flushes: bool = False) -> FileDigest:
    """Return the size and the digest of a file.

    Args:
        path: the file.
        flushes: wait until it is on disk: a file that is listed must survive a power failure.
    Raises:
        OSError: it cannot be read or flushed.
    """
    with path.open("rb") as stream:
        if flushes:
            os.fsync(stream.fileno())
        digest = hashlib.file_digest(stream, _ALGORITHM)
        return FileDigest(bytes=os.fstat(stream.fileno()).st_size, sha256=digest.hexdigest())


def write_checksums(folder: Path, digests: Mapping[str, FileDigest] | None = None) -> None:
    """Write the checksums of all files of a folder.

    Args:
        folder: a checkpoint that is otherwise complete.
        digests: those that are known; the other files are read here.
    """
    known = dict(digests or {})
    names = sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS_NAME)
    files = {name: asdict(known.get(name) or digest_file(folder / name, flushes=True)) for name in names}
    content = {"algorithm": _ALGORITHM, "files": files}
    write_atomically(folder / CHECKSUMS_NAME, json.dumps(content, indent=2) + "\n")


def read_checksums(folder: Path) -> dict[str, FileDigest]:
    """Return the expected size and digest of each file, by name.

    Raises:
        CheckpointError: the list is absent or damaged.
    """
    path = folder / CHECKSUMS_NAME
    try:
        content = read_json_object(path)
        return {_file_name(name): _digest(entry) for name, entry in content["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} must list the files of its checkpoint, but could not be read ({error}); "
            "use another checkpoint"
        ) from error


def find_damage(folder: Path, *, names: Iterable[str] | None = None, reads: bool = True) -> list[Damage]:
    """Check files of a checkpoint against its checksums.

    Args:
        folder: the checkpoint.
        names: which of the listed files; None means all.
        reads: compare contents as well as presence and size.
    Returns:
        One entry per damaged file, in the order of their names.
    """
    try:
        listed = read_checksums(folder)
    except CheckpointError:
        state = "is damaged" if (folder / CHECKSUMS_NAME).exists() else "is missing"
        return [Damage(file=CHECKSUMS_NAME, reason=state)]
    chosen = sorted(listed) if names is None else sorted(names)
    reasons = ((name, _reason(folder / name, listed[name], reads=reads)) for name in chosen)
    return [Damage(file=name, reason=reason) for name, reason in reasons if reason is not None]


def describe_damage(damage: Sequence[Damage]) -> str:
    """Render damaged files for a message, at most ten of them."""
    return "; ".join(str(item) for item in damage[:10]) + (" ..." if len(damage) > 10 else "")


def share_files(folder: Path, *, rank: int, world_size: int) -> Sequence[str]:
    """Return this rank's share of the listed files, such that all ranks read about the same amount.

    If the list cannot be read, the share is empty; :func:`find_damage` reports it on every rank.
    """
    try:
        listed = read_checksums(folder)
    except CheckpointError:
        return []
    loads = [0] * world_size
    mine = []
    for name in sorted(listed, key=lambda name: (-listed[name].bytes, name)):
        # The largest file first, each to the rank with the least so far.
        reader = loads.index(min(loads))
        loads[reader] += listed[name].bytes
        if reader == rank:
            mine.append(name)
    return mine


def _file_name(name: str) -> str:
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"{name[:80]!r} is not the name of a file in the folder")
    return name


def _digest(entry: Mapping[str, object]) -> FileDigest:
    digest = FileDigest(**entry)  # type: ignore[arg-type]  # checked below
    if type(digest.bytes) is not int or not isinstance(digest.sha256, str):
        raise ValueError("an entry has no size and digest")
    return digest


def _reason(path: Path, expected: FileDigest, *, reads: bool) -> str | None:
    try:
        size = regular_size(path)
        if size != expected.bytes:
            return f"must have {expected.bytes} bytes, but has {size}"
        if reads and digest_file(path).sha256 != expected.sha256:
            return "does not match its checksum"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except ValueError:
        return "is no regular file"
    return None
