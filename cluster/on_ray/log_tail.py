"""Copying what is added to a log."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO


class LogTail:
    """Copies a file as it grows; where another takes its place, that one from its beginning.

    Args:
        output: where to.
    """

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._file: Path | None = None
        self._position = 0

    def copy(self, files: Sequence[Path]) -> None:
        """Copy what was added to the first of the files since the last call."""
        if not files:
            return
        if files[0] != self._file:
            self._file, self._position = files[0], 0
        with self._file.open("rb") as source:
            source.seek(self._position)
            added = source.read()
        self._position += len(added)
        self._output.write(added)
        self._output.flush()
