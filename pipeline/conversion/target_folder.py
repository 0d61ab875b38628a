"""The folder that a conversion writes: empty, absent, or left by a killed conversion. Needs no torch."""

from pathlib import Path

from pipeline.checkpoint.folder import is_partial
from pipeline.conversion.tokenizer_files import TOKENIZER_FOLDER
from pipeline.shared.errors import ConversionError

__all__ = ["check_is_free", "is_left_by_import"]


def check_is_free(folder: Path) -> None:
    """Check that a conversion may write into a folder.

    Raises:
        ConversionError: it has content, or is no folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConversionError(
            f"{folder} must be an empty or absent folder, but has content; give another one with --output"
        )


def is_left_by_import(directory: Path) -> bool:
    """Tell whether a folder holds nothing but what an import leaves that was killed."""
    inside = list(directory.iterdir()) if directory.is_dir() else []
    return any(map(is_partial, inside)) and all(
        is_partial(path) or path.name == TOKENIZER_FOLDER for path in inside
    )
