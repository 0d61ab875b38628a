"""Sources of text: files, folders, globs and URLs, and the format of each file."""

import functools
import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from data_prep.inputs.urls import mask_url, plain_name
from data_prep.manifest import ReadSettings

INSTALLED_PACKAGES = ("site-packages", "dist-packages")
COMPRESSIONS = (".gz", ".zst", ".xz")

FileFormat = Literal["text", "lines", "jsonl", "parquet", "tar"]

# What a file is, by the end of its name. The content is checked against it when the file is read.
_COMPRESSIBLE: dict[str, FileFormat] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "jsonl",
    ".tar": "tar",
}
_FORMATS: dict[str, FileFormat] = {
    **_COMPRESSIBLE,
    **{name + compression: kind for name, kind in _COMPRESSIBLE.items() for compression in COMPRESSIONS},
    ".parquet": "parquet",
    ".tgz": "tar",
}
# Files to take from a folder if no suffixes are given.
KNOWN_SUFFIXES = tuple(_FORMATS)
_KNOWN_SHOWN = f"{', '.join(_COMPRESSIBLE)} (also compressed: {', '.join(COMPRESSIONS)}), .parquet or .tgz"


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

    ``suffixes`` select the files of folders. A file that is named, or matched by a glob, must end in one of
    them or in one of :data:`KNOWN_SUFFIXES`. Suffixes that are not known are those of plain text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[str, ...] = Field(min_length=1)
    suffixes: tuple[str, ...] = Field(default=KNOWN_SUFFIXES, min_length=1)
    skipped_folders: tuple[str, ...] = ("__pycache__",)
    reading: ReadSettings = ReadSettings()

    @property
    def description(self) -> str:
        """Name for manifests and messages, without the secrets of URLs."""
        return ", ".join(mask_url(place) for place in self.inputs)


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


def show_suffixes(suffixes: tuple[str, ...]) -> str:
    """Render suffixes for a message."""
    return _KNOWN_SHOWN if suffixes == KNOWN_SUFFIXES else ", ".join(suffixes)


def known_suffix(name: str) -> str | None:
    """Return the longest suffix of :data:`KNOWN_SUFFIXES` that a name ends in, in any case, or None."""
    lowered = plain_name(name).lower()
    return max((suffix for suffix in KNOWN_SUFFIXES if lowered.endswith(suffix)), key=len, default=None)


@functools.lru_cache(maxsize=1024)
def file_format(name: str, reading: ReadSettings) -> FileFormat:
    """Return the format of a file by its name; plain text if its suffix is one that the user declared."""
    suffix = known_suffix(name)
    kind: FileFormat = "text" if suffix is None else _FORMATS[suffix]
    return "lines" if kind == "text" and reading.lines else kind


@functools.lru_cache(maxsize=1024)
def compression_of(name: str) -> str | None:
    """Return the suffix of :data:`COMPRESSIONS` by which a file is compressed, or None."""
    lowered = plain_name(name).lower()
    if lowered.endswith(".tgz"):
        return ".gz"
    return next((suffix for suffix in COMPRESSIONS if lowered.endswith(suffix)), None)


def files_fingerprint(files: Iterable[InputFile]) -> str:
    """Return the SHA-256 over path, size and modification time of files in order; no content is read."""
    digest = hashlib.sha256()
    for file in files:
        line = f"{file.path}\0{file.size_bytes}\0{file.modified_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
