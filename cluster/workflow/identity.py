"""Identities of inputs and outputs of workflow steps: short texts that change when the content does."""

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from data_prep.inputs.documents import (
    KNOWN_SUFFIXES,
    TextFiles,
    TextSource,
    files_fingerprint,
    python_standard_library,
)
from data_prep.manifest import MANIFEST_NAME, ReadSettings, load_manifest
from pipeline.checkpoint.checksums import CHECKSUMS_NAME
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.config.workflow_section import PrepareStep, TokenizerStep
from pipeline.shared.errors import CheckpointError, DataError
from pipeline.shared.files import file_sha256

# Packages whose sources decide what a training run computes.
_COMPUTING_PACKAGES = ("megatron_ext", "pipeline", "data_prep")


def text_of(step: TokenizerStep | PrepareStep) -> TextSource:
    """Return the text a step reads, as `megaponder data prepare` finds it."""
    if step.python_stdlib:
        return python_standard_library()
    return TextFiles(
        inputs=step.inputs,
        suffixes=step.suffixes or KNOWN_SUFFIXES,
        reading=ReadSettings(text_field=step.text_field, lines=step.lines),
    )


def identity_of_text(text: TextSource) -> str:
    """Return a hash over name, size and time of every file; no text is read.

    Raises:
        DataError: there is no such text.
    """
    # Loads fsspec.
    from data_prep.inputs.finding import find_files

    return files_fingerprint(find_files(text))


def identity_of_file(path: Path) -> str | None:
    """Return the checksum of a file, or None if it does not exist."""
    return file_sha256(path) if path.is_file() else None


def identity_of_files(folder: Path, pattern: str) -> str | None:
    """Return a checksum over the files of a folder that match a pattern, or None if there are none."""
    files = sorted(file for file in folder.glob(pattern) if file.is_file())
    return _digest(f"{file.name} {file_sha256(file)}" for file in files) if files else None


def identity_of_tokens(path: Path) -> str | None:
    """Return an identity of tokens: checksums if there is a manifest, else names, sizes and times.

    Tokens that are prepared again from the same text have the same identity.
    """
    if (path / MANIFEST_NAME).exists():
        try:
            manifest = load_manifest(path)
        except DataError:
            return None
        shards = [f"{shard.name} {shard.split} {shard.sha256}" for shard in manifest.shards]
        return _digest([manifest.header.tokenizer.sha256, *shards])
    # Rows or a Megatron pair: a folder, or the prefix of two files.
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}.*")
    found = sorted(file for file in files if file.suffix in (".bin", ".idx"))
    return _digest(map(_described, found)) if found else None


def identity_of_checkpoint(path: Path) -> str | None:
    """Return iteration and checksum of the newest complete checkpoint, or None if there is none."""
    try:
        folder = resolve_checkpoint(path)
    except CheckpointError:
        return None
    digest = identity_of_file(folder / CHECKSUMS_NAME)
    return None if digest is None else f"{folder.name} {digest}"


def identity_of_folder(path: Path) -> str | None:
    """Return a checksum over all files of a small folder, or None if it does not exist."""
    if not path.is_dir():
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return _digest(f"{file.relative_to(path)} {file_sha256(file)}" for file in files)


def identity_of_program() -> str:
    """Return a hash over the sources that a run is computed with."""
    lines: list[str] = []
    for package in _COMPUTING_PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None, f"package {package} is part of this distribution"
        for folder in spec.submodule_search_locations or ():
            files = sorted(Path(folder).rglob("*.py"))
            lines += [f"{package}/{file.relative_to(folder)} {file_sha256(file)}" for file in files]
    return _digest(lines)


def _described(file: Path) -> str:
    status = file.stat()
    return f"{file.name} {status.st_size} {status.st_mtime_ns}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
