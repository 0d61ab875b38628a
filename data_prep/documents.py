"""Where text comes from: a folder of text files, one document per file."""

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from data_prep.errors import DataError

INSTALLED_PACKAGES = ("site-packages", "dist-packages")


class TextFolder(BaseModel):
    """A folder of text files, or one file.

    ``skipped_folders`` are folder names that are not entered, wherever they occur.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    suffixes: tuple[str, ...] = Field(default=(".txt",), min_length=1)
    skipped_folders: tuple[str, ...] = ("__pycache__",)
    label: str | None = None

    @property
    def description(self) -> str:
        """Name for manifests and messages."""
        return self.label or str(self.root)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file as it was found: ``path`` is relative to the source's root, with forward slashes."""

    path: str
    size_bytes: int
    modified_ns: int


def python_standard_library() -> TextFolder:
    """Sources of the running Python's standard library: real text that every machine has."""
    return TextFolder(
        root=Path(sysconfig.get_paths()["stdlib"]),
        suffixes=(".py",),
        skipped_folders=("__pycache__", *INSTALLED_PACKAGES),
        label="python-standard-library",
    )


def find_files(source: TextFolder) -> list[InputFile]:
    """List the files of a source, sorted by relative path, so that every machine sees one order.

    Raises:
        DataError: the root does not exist or holds no such file.
    """
    if not source.root.exists():
        raise DataError(f"the text source {source.root} must exist, but does not; check the path")
    files = sorted((_describe(source, path) for path in _walk(source)), key=lambda file: file.path)
    if not files:
        raise DataError(
            f"{source.root} must hold files ending in {', '.join(source.suffixes)}, but has none; "
            "name other suffixes or another folder"
        )
    return files


def file_path(source_root: Path, file: InputFile) -> Path:
    """Where a found file lies; a source that is one file is its own root."""
    return source_root if source_root.is_file() else source_root / file.path


def files_fingerprint(files: Iterable[InputFile]) -> str:
    """SHA-256 over path, size and modification time of files in order; no content is read."""
    digest = hashlib.sha256()
    for file in files:
        line = f"{file.path}\0{file.size_bytes}\0{file.modified_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def read_document(source_root: Path, file: InputFile) -> str:
    """Read one document.

    Raises:
        UnicodeDecodeError: the file is not UTF-8.
        DataError: the file changed since it was listed.
    """
    content = file_path(source_root, file).read_bytes()
    if len(content) != file.size_bytes:
        raise DataError(
            f"input files must not change while they are tokenized, but {file.path} had {file.size_bytes} "
            f"bytes and has {len(content)} now; run the command again once the folder is quiet"
        )
    return content.decode("utf-8")


def _walk(source: TextFolder) -> Iterator[Path]:
    if source.root.is_file():
        yield source.root
        return
    for folder, folders, names in os.walk(source.root):
        folders[:] = [name for name in folders if name not in source.skipped_folders]
        candidates = (Path(folder, name) for name in names if name.endswith(source.suffixes))
        # a dangling link or a socket has no text to offer
        yield from (path for path in candidates if path.is_file())


def _describe(source: TextFolder, path: Path) -> InputFile:
    status = path.stat()
    relative = path.name if path == source.root else path.relative_to(source.root).as_posix()
    return InputFile(path=relative, size_bytes=status.st_size, modified_ns=status.st_mtime_ns)
