"""Sources of text: files, folders, globs and URLs, and the format of each file."""

import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from data_prep.manifest import ReadSettings

INSTALLED_PACKAGES = ("site-packages", "dist-packages")
COMPRESSIONS = (".gz", ".zst", ".xz")

FileFormat = Literal["text", "lines", "jsonl", "parquet", "tar"]

_FORMATS: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".tar": "tar",
    ".tgz": "tar",
}
_COMPRESSIBLE = (".txt", ".jsonl", ".ndjson", ".tar")
# Files to take from a folder if no suffixes are given.
KNOWN_SUFFIXES = (
    *_COMPRESSIBLE,
    *(suffix + compression for suffix in _COMPRESSIBLE for compression in COMPRESSIONS),
    ".parquet",
    ".tgz",
)


class TextFolder(BaseModel):
    """A folder of files with text, or one file.

    ``skipped_folders`` are names of folders to skip at any depth.
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

    @property
    def reading(self) -> ReadSettings:
        """How its files are read: by their suffixes."""
        return ReadSettings()


class TextFiles(BaseModel):
    """Files, folders, globs and fsspec URLs of these, mixed.

    ``suffixes`` select the files of folders; files and globs that are given are always taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[str, ...] = Field(min_length=1)
    suffixes: tuple[str, ...] = Field(default=KNOWN_SUFFIXES, min_length=1)
    skipped_folders: tuple[str, ...] = ("__pycache__",)
    reading: ReadSettings = ReadSettings()

    @property
    def description(self) -> str:
        """Name for manifests and messages."""
        return ", ".join(self.inputs)


TextSource = TextFolder | TextFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file as it was listed.

    ``path`` is its name in manifests, with forward slashes, and the same on every machine; ``location`` is
    the absolute path or the URL.
    """

    path: str
    size_bytes: int
    modified_ns: int
    location: str = ""


def python_standard_library() -> TextFolder:
    """Return the sources of Python's standard library, real text that every machine has."""
    return TextFolder(
        root=Path(sysconfig.get_paths()["stdlib"]),
        suffixes=(".py",),
        skipped_folders=("__pycache__", *INSTALLED_PACKAGES),
        label="python-standard-library",
    )


def file_format(path: str, reading: ReadSettings) -> FileFormat:
    """Return the format of a file by its suffix; text if the suffix is unknown."""
    name = path.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    text: FileFormat = "lines" if reading.lines else "text"
    return next((kind for suffix, kind in _FORMATS.items() if name.endswith(suffix)), text)


def files_fingerprint(files: Iterable[InputFile]) -> str:
    """Return the SHA-256 over path, size and modification time of files in order; no content is read."""
    digest = hashlib.sha256()
    for file in files:
        line = f"{file.path}\0{file.size_bytes}\0{file.modified_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
