"""List the files of a text source, on local disks and at fsspec URLs."""

import glob
import hashlib
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec

from data_prep.inputs.documents import InputFile, TextFiles, TextFolder, TextSource
from pipeline.shared.errors import DataError

# Keys of the modification time in fsspec's file systems, in the order of preference.
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "created")


def find_files(source: TextSource) -> list[InputFile]:
    """List the files of a source, sorted by name, so that every machine has the same order.

    A file that is in two inputs is taken once.

    Raises:
        DataError: an input does not exist, or there are no files with the suffixes.
    """
    if isinstance(source, TextFolder):
        found = list(_local_files(str(source.root), source, prefix=""))
    else:
        # Names start with the input only if that is needed to distinguish two inputs.
        prefixes = source.inputs if len(source.inputs) > 1 else ("",)
        pairs = zip(source.inputs, prefixes, strict=True)
        found = [file for place, prefix in pairs for file in _input_files(place, source, prefix)]
    files = {file.location: file for file in sorted(found, key=lambda file: file.path, reverse=True)}
    if not files:
        raise DataError(
            f"{source.description} must hold files ending in {', '.join(source.suffixes)}, but has none; "
            "give other suffixes or another folder"
        )
    return sorted(files.values(), key=lambda file: file.path)


def _input_files(place: str, source: TextFiles, prefix: str) -> Iterator[InputFile]:
    if is_url(place):
        return _remote_files(place, source, prefix)
    if glob.has_magic(place) and not Path(place).exists():
        return _globbed_files(place)
    return _local_files(place, source, prefix)


def is_url(place: str) -> bool:
    """Tell whether an input or location is opened through fsspec."""
    return "://" in place


def _local_files(place: str, source: TextSource, prefix: str) -> Iterator[InputFile]:
    root = Path(place)
    if not root.exists():
        raise _missing(place)
    if root.is_file():
        yield _describe_local(root, prefix or root.name)
        return
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in source.skipped_folders]
        for name in names:
            path = Path(folder, name)
            # Not a dangling link or a socket.
            if name.endswith(source.suffixes) and path.is_file():
                yield _describe_local(path, _joined(prefix, path.relative_to(root).as_posix()))


def _globbed_files(pattern: str) -> Iterator[InputFile]:
    paths = [Path(match) for match in glob.glob(pattern, recursive=True)]  # noqa: PTH207 (patterns may be absolute)
    files = [path for path in paths if path.is_file()]
    if not files:
        raise _missing(pattern)
    return (_describe_local(path, path.as_posix()) for path in files)


def _describe_local(path: Path, name: str) -> InputFile:
    status = path.stat()
    location = str(path.resolve())
    return InputFile(path=name, size_bytes=status.st_size, modified_ns=status.st_mtime_ns, location=location)


def _remote_files(url: str, source: TextFiles, prefix: str) -> Iterator[InputFile]:
    system, root = _file_system(url)
    is_folder = False
    if glob.has_magic(root):
        details = system.glob(root, detail=True)
    elif is_folder := system.isdir(root):
        details = system.find(root, detail=True)
    else:
        details = {root: system.info(root)} if system.exists(root) else {}
    if not details:
        raise _missing(url)
    for path, detail in details.items():
        if detail["type"] == "file":
            relative = path.removeprefix(root).lstrip("/")
            if is_folder and not _is_wanted(relative, source):
                continue
            location = system.unstrip_protocol(path)
            yield InputFile(
                path=_joined(prefix, relative) if is_folder else location,
                size_bytes=detail["size"],
                modified_ns=_modified_ns(detail),
                location=location,
            )


def _file_system(url: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except (ValueError, ImportError) as error:
        raise DataError(
            f"{url} must be a URL that fsspec can open, but it reports: {error}; "
            "install the file system's package (s3fs for s3://, gcsfs for gs://), or copy the files"
        ) from error


def _is_wanted(relative: str, source: TextFiles) -> bool:
    folders = relative.split("/")[:-1]
    return relative.endswith(source.suffixes) and not set(folders) & set(source.skipped_folders)


def _modified_ns(detail: dict[str, Any]) -> int:
    """Return the modification time in nanoseconds; a number from its ETag if the time is unknown."""
    value = next((detail[key] for key in _TIME_KEYS if detail.get(key) is not None), None)
    if isinstance(value, datetime):
        return int(value.timestamp() * 1e9)
    if isinstance(value, int | float):
        return int(value * 1e9)
    mark = str(value or detail.get("ETag") or detail.get("etag") or "")
    return int.from_bytes(hashlib.sha256(mark.encode()).digest()[:7], "big") if mark else 0


def _joined(prefix: str, relative: str) -> str:
    return f"{prefix.rstrip('/')}/{relative}" if prefix else relative


def _missing(place: str) -> DataError:
    return DataError(f"the text source {place} must exist, but does not; check the path")
