"""Where a command takes its text from: a folder, or the sources of the Python standard library."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep.documents import TextFolder, python_standard_library

Source = Annotated[
    Path | None,
    typer.Argument(
        metavar="SOURCE",
        help="Folder of text files, one document each, or one file. Not with --python-stdlib.",
        show_default=False,
    ),
]
Suffixes = Annotated[
    list[str],
    typer.Option("--suffix", metavar="SUFFIX", help="Files to take; give it several times for more."),
]
PythonStandardLibrary = Annotated[
    bool, typer.Option("--python-stdlib", help="Take the sources of this Python's standard library.")
]
HeldoutFraction = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=0.99,
        metavar="SHARE",
        help="Share of documents held out, chosen by a hash of their names.",
    ),
]


def choose_source(folder: Path | None, suffixes: list[str], python_stdlib: bool) -> TextFolder:
    """Make the text source that the arguments name.

    Raises:
        typer.BadParameter: none is named, or two are.
    """
    if (folder is None) != python_stdlib:
        raise typer.BadParameter("give a folder or --python-stdlib, one of the two", param_hint="SOURCE")
    if folder is None:
        return python_standard_library()
    return TextFolder(root=folder, suffixes=tuple(suffixes))
