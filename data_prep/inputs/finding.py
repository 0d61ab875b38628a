"""List the files of a text source, on local disks and at fsspec URLs, and what is skipped in its folders."""

import glob
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.inputs.documents import (
    KNOWN_SUFFIXES,
    InputFile,
    TextFolder,
    TextSource,
    known_suffix,
    show_suffixes,
)
from data_prep.inputs.remote import ask, file_system, is_http, unreadable
from data_prep.inputs.texts import without_mark
from data_prep.inputs.urls import is_url, mask_url, plain_name
from data_prep.inputs.walking import match_glob, walk
from pipeline.shared.errors import DataError

# Keys of the modification time in fsspec's file systems, in the order of preference.
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "created")
# A .json file up to this size is looked at: it may describe the data instead of being data.
_DESCRIPTION_BYTES = 1 << 20
_FILE_URL = "file://"
_SKIPPED_FOLDER = "folders of this name are skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedFile:
    """A file in a folder that is not read, or such a folder, and why."""

    path: str
    reason: str

    def to_json(self) -> str:
        """Return a line of a list."""
        # Names of files may hold bytes that are not UTF-8.
        return json.dumps({"path": self.path, "reason": self.reason})

    @property
    def kind(self) -> str:
        """The end of its name, for counts."""
        name = plain_name(self.path).rstrip("/").rpartition("/")[2]
        return "folder" if self.path.endswith("/") else Path(name).suffix.lower() or "no suffix"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFiles:
    """The files of a source, sorted by name, and what was skipped in its folders."""

    files: tuple[InputFile, ...]
    skipped: tuple[SkippedFile, ...]


def find_files(source: TextSource) -> list[InputFile]:
    """List the files of a source, sorted by name, so that every machine has the same order.

    A file that is in two inputs is taken once.

    Raises:
        DataError: as in :func:`survey_files`.
    """
    return list(survey_files(source).files)


def survey_files(source: TextSource, *, output: Path | None = None) -> FoundFiles:
    """List the files of a source and what is skipped in its folders.

    Args:
        source: the inputs.
        output: a folder that is never an input, although it may be inside one.
    Raises:
        DataError: an input does not exist, is of an unknown kind or cannot be listed, or there are no files.
    """
    search = _Search(source, output)
    if isinstance(source, TextFolder):
        found = list(search.local(str(source.root), prefix=""))
    else:
        # Names start with the input only if that is needed to distinguish two inputs.
        prefixes = source.inputs if len(source.inputs) > 1 else ("",) * len(source.inputs)
        pairs = zip(source.inputs, prefixes, strict=True)
        found = [file for place, prefix in pairs for file in search.input(place, mask_url(prefix))]
    files = {file.location: file for file in sorted(found, key=lambda file: file.path, reverse=True)}
    skipped = tuple(sorted(search.skipped, key=lambda file: file.path))
    if not files:
        raise _nothing_found(source, skipped)
    return FoundFiles(
        files=tuple(sorted(_apart(list(files.values())), key=lambda file: file.path)), skipped=skipped
    )


def _apart(files: list[InputFile]) -> list[InputFile]:
    """Number files whose names differ only in the masked parts of their URLs."""
    counts: Counter[str] = Counter()
    result = []
    for file in reversed(files):
        counts[file.path] += 1
        number = counts[file.path]
        name = file.path if number == 1 else _numbered(file.path, number)
        result.append(
            InputFile(
                path=name, size_bytes=file.size_bytes, modified_ns=file.modified_ns, location=file.location
            )
        )
    return result


def _numbered(name: str, number: int) -> str:
    return f"{name}#{number}"


def _nothing_found(source: TextSource, skipped: tuple[SkippedFile, ...]) -> DataError:
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(file.kind for file in skipped).items())
    first = f" ({kinds}; the first is {skipped[0].path}: {skipped[0].reason})" if skipped else ""
    return DataError(
        f"{source.description} must hold files ending in {show_suffixes(source.suffixes)}, but has "
        f"none{first}; give other suffixes or another folder"
    )


class _Search:
    """The search for the files of one source, which collects what it skips."""

    def __init__(self, source: TextSource, output: Path | None) -> None:
        self._source = source
        self._output = None if output is None else output.resolve()
        self._suffixes = tuple(suffix.lower() for suffix in source.suffixes)
        self.skipped: list[SkippedFile] = []

    def input(self, place: str, prefix: str) -> Iterator[InputFile]:
        if place.startswith(_FILE_URL):
            return self._file_url(place.removeprefix(_FILE_URL), prefix)
        if is_url(place):
            return self._remote(place, prefix)
        if glob.has_magic(place) and not Path(place).exists():
            return self._globbed(place)
        return self.local(place, prefix)

    def local(self, place: str, prefix: str) -> Iterator[InputFile]:
        root = Path(place)
        if root.is_file():
            self._check_kind(place)
            yield _describe_local(root, prefix or root.name)
        elif root.is_dir():
            yield from self._folder(root, partial(_joined, prefix))
        elif root.exists():
            raise DataError(
                f"the text source {place} must be a file or a folder, but is a pipe or a device; write its "
                "content to a file"
            )
        else:
            raise _missing(place)

    def _file_url(self, path: str, prefix: str) -> Iterator[InputFile]:
        """Read URLs of local files as paths; a single file and those of a glob are named by their URLs."""
        is_glob = glob.has_magic(path) and not Path(path).exists()
        for file in self._globbed(path) if is_glob else self.local(path, prefix):
            is_single = is_glob or not Path(path).is_dir()
            name = f"{_FILE_URL}{file.location}" if is_single else file.path
            yield InputFile(
                path=name,
                size_bytes=file.size_bytes,
                modified_ns=file.modified_ns,
                location=file.location,
            )

    def _globbed(self, pattern: str) -> Iterator[InputFile]:
        paths = match_glob(pattern)
        found = []
        # Folders of a pattern such as `web/**` contain each other: all are walked as one.
        folders = [path for path in paths if path.is_dir()]
        files = [path for path in paths if not path.is_dir()]
        for path in files:
            if not path.is_file():
                self._skip(path.as_posix(), _no_file(path))
            elif self._is_wanted(path.name):
                found.append(_describe_local(path, path.as_posix()))
            else:
                self._skip_kind(path.as_posix())
        for folder in folders:
            if folder.name in self._source.skipped_folders:
                self._skip(folder.as_posix() + "/", _SKIPPED_FOLDER)
            elif not set(folder.parents) & set(folders):
                found += self._folder(folder, partial(_joined, folder.as_posix()))
        if not paths:
            raise _missing(pattern)
        if files and not folders and not found:
            self._check_kind(str(files[0]))
        return iter(found)

    def _folder(self, root: Path, name_of: Callable[[str], str]) -> Iterator[InputFile]:
        def is_entered(path: Path) -> bool:
            if path.name in self._source.skipped_folders:
                self._skip(
                    name_of(path.relative_to(root).as_posix()) + "/", "folders of this name are skipped"
                )
                return False
            if self._output is not None and path.resolve() == self._output:
                self._skip(
                    name_of(path.relative_to(root).as_posix()) + "/", "it is the output of this command"
                )
                return False
            return True

        for folder in walk(root, is_entered):
            for name in folder.names:
                path = folder.path / name
                shown = name_of(path.relative_to(root).as_posix())
                if not self._is_selected(name):
                    self._skip_kind(shown)
                elif not path.is_file():
                    self._skip(shown, _no_file(path))
                elif (reason := self._is_description(path)) is not None:
                    self._skip(shown, reason)
                else:
                    yield _describe_local(path, shown)

    def _remote(self, url: str, prefix: str) -> Iterator[InputFile]:
        system, root = file_system(url)
        if not is_http(url) and glob.has_magic(root):
            matches = ask(url, lambda: system.glob(root, detail=True))
            if not matches:
                raise _missing(url)
            for path, detail in sorted(matches.items()):
                yield from self._remote_match(url, system, path, detail)
        elif plain_name(root).endswith("/") if is_http(url) else ask(url, lambda: system.isdir(root)):
            base = _joined(plain_name(prefix), "").rstrip("/") if prefix else ""
            yield from self._remote_folder(url, system, root, base)
        else:
            file = _describe_remote(url, system, root, mask_url(system.unstrip_protocol(root)))
            self._check_kind(url)
            yield file

    def _remote_match(self, url: str, system: Any, path: str, detail: dict[str, Any]) -> Iterator[InputFile]:
        name = mask_url(system.unstrip_protocol(path))
        if detail["type"] == "directory" and path.rpartition("/")[2] in self._source.skipped_folders:
            self._skip(f"{name}/", _SKIPPED_FOLDER)
        elif detail["type"] == "directory":
            yield from self._remote_folder(url, system, path, name)
        elif self._is_wanted(name):
            yield _describe_remote(url, system, path, name, detail)
        else:
            self._skip_kind(name)

    def _remote_folder(self, url: str, system: Any, root: str, prefix: str) -> Iterator[InputFile]:
        try:
            details = ask(url, lambda: system.find(root, detail=True))
        except FileNotFoundError:
            raise _missing(url) from None
        if not details:
            raise _missing(url)
        for path, detail in sorted(details.items()):
            relative = path.removeprefix(root).lstrip("/")
            shown = _joined(prefix, mask_url(relative))
            if detail["type"] != "file":
                continue
            if set(relative.split("/")[:-1]) & set(self._source.skipped_folders):
                self._skip(shown, _SKIPPED_FOLDER)
            elif not self._is_selected(relative):
                self._skip_kind(shown)
            else:
                yield _describe_remote(url, system, path, shown, detail)

    def _is_selected(self, name: str) -> bool:
        """Tell whether a file of a folder has one of the suffixes."""
        return plain_name(name).lower().endswith(self._suffixes)

    def _is_wanted(self, name: str) -> bool:
        return known_suffix(name) is not None or self._is_selected(name)

    def _check_kind(self, place: str) -> None:
        """Check that a file that is named is of a known kind."""
        if not isinstance(self._source, TextFolder) and not self._is_wanted(place):
            raise DataError(
                f"an input file must end in {show_suffixes(KNOWN_SUFFIXES)}, but {mask_url(place)} does "
                "not, so that its kind is unknown; rename, unpack or convert it, or declare the end of its "
                "name with --suffix to read it as plain text"
            )

    def _is_description(self, path: Path) -> str | None:
        """Return why a small JSON file is not read as JSON lines: it is one object without the text field."""
        is_small = path.name.lower().endswith(".json") and path.stat().st_size <= _DESCRIPTION_BYTES
        if not is_small or isinstance(self._source, TextFolder):
            return None
        field = self._source.reading.text_field
        try:
            value = json.loads(without_mark(path.read_bytes()))
        except (ValueError, RecursionError, OSError):
            return None  # several lines, or damage that is found when it is read
        is_description = isinstance(value, dict) and field not in value
        return f"it is one JSON object without a field {field!r}" if is_description else None

    def _skip_kind(self, name: str) -> None:
        self._skip(name, f"it does not end in {show_suffixes(self._source.suffixes)}")

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append(SkippedFile(path=name, reason=reason))


def _no_file(path: Path) -> str:
    return "it is a link to nothing" if path.is_symlink() and not path.exists() else "it is not a plain file"


def _describe_local(path: Path, name: str) -> InputFile:
    status = path.stat()
    location = str(path.resolve())
    return InputFile(path=name, size_bytes=status.st_size, modified_ns=status.st_mtime_ns, location=location)


def _describe_remote(
    url: str, system: Any, path: str, name: str, detail: dict[str, Any] | None = None
) -> InputFile:
    if detail is None or detail.get("size") is None:
        # Listings of web servers have no sizes.
        try:
            detail = ask(url, lambda: system.info(path))
        except FileNotFoundError as error:
            raise _missing_or_unreachable(url, error) from None
    assert detail is not None, "it has just been asked for"
    if detail.get("size") is None:
        raise DataError(
            f"the server of {name} must tell the size of the file, but does not; copy it to a local disk"
        )
    return InputFile(
        path=name,
        size_bytes=int(detail["size"]),
        modified_ns=_modified_ns(detail),
        location=system.unstrip_protocol(path),
    )


def _missing_or_unreachable(url: str, error: FileNotFoundError) -> DataError:
    """Tell a server that has no such file from one that cannot be reached: fsspec's error is the same."""
    cause = error.__cause__
    if cause is None or getattr(cause, "status", None) in (404, 410):
        return _missing(url)
    return unreadable(url, cause)


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
    return DataError(f"the text source {mask_url(place)} must exist, but does not; check the path")
