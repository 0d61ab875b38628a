"""Where a command takes its text from: files of any known kind, or the sources of the standard library."""

from typing import Annotated

import typer

from data_prep.inputs.documents import KNOWN_SUFFIXES, TextFiles, TextSource, python_standard_library
from data_prep.manifest import ReadSettings

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE...",
        help="Files, folders, globs and fsspec URLs (s3://, gs://, file://) of these, mixed: JSON lines, "
        "parquet, plain text, webdataset tars with .txt members; .gz, .zst and .xz are unpacked. "
        "Not with --python-stdlib.",
        show_default=False,
    ),
]
Suffixes = Annotated[
    list[str] | None,
    typer.Option(
        "--suffix",
        metavar="SUFFIX",
        help="Files to take from folders, instead of all known kinds; give it several times for more.",
        show_default=False,
    ),
]
TextField = Annotated[
    str, typer.Option(metavar="NAME", help="Field of JSON records and column of parquet files with the text.")
]
Lines = Annotated[
    bool, typer.Option("--lines", help="Take each line of a plain text file as a document, not the file.")
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


def choose_source(
    inputs: list[str] | None,
    *,
    suffixes: list[str] | None,
    text_field: str,
    lines: bool,
    python_stdlib: bool,
) -> TextSource:
    """Make the text source that the arguments name.

    Raises:
        typer.BadParameter: none is named, or two are.
    """
    if bool(inputs) == python_stdlib:
        raise typer.BadParameter("give text or --python-stdlib, one of the two", param_hint="SOURCE")
    if not inputs:
        return python_standard_library()
    return TextFiles(
        inputs=tuple(inputs),
        suffixes=tuple(suffixes or KNOWN_SUFFIXES),
        reading=ReadSettings(text_field=text_field, lines=lines),
    )
