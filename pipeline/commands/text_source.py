"""Arguments that choose the text a command reads: files of any known kind, or Python's standard library."""

from typing import Annotated

import typer

from data_prep.inputs.documents import KNOWN_SUFFIXES, TextFiles, TextSource, python_standard_library
from data_prep.manifest import DEFAULT_MAX_RECORD_BYTES, ReadSettings
from pipeline.shared.paths import UnknownNameError, expand_path

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE...",
        help="Files, folders, globs and fsspec URLs (s3://, gs://, file://) of text in any mix of formats: "
        "JSON lines (.jsonl, .ndjson, .json), parquet, plain text, webdataset tars with .txt members; .gz, "
        ".zst and .xz are decompressed. Alternatively, give --python-stdlib.",
        show_default=False,
    ),
]
Suffixes = Annotated[
    list[str] | None,
    typer.Option(
        "--suffix",
        metavar="SUFFIX",
        help="Read only files with this suffix from folders; may be repeated. One of no known format "
        "is read as plain text, also in files that are named. Default: all known formats.",
        show_default=False,
    ),
]
TextField = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Field of JSON records and column of parquet files that holds the text."
    ),
]
Lines = Annotated[
    bool,
    typer.Option(
        "--lines", help="Treat each line of a plain text file as a document, instead of the whole file."
    ),
]
PythonStandardLibrary = Annotated[
    bool,
    typer.Option(
        "--python-stdlib", help="Read the source files of this Python's standard library instead of SOURCE."
    ),
]
MaxRecordBytes = Annotated[
    int,
    typer.Option(
        min=1,
        max=1 << 31,
        metavar="BYTES",
        help="Largest document: line, JSON record, parquet value, tar member or plain text file; larger ones "
        "are bad records.",
    ),
]
MaxBadFiles = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Files that may be lost: unreadable, truncated, of another kind than their name says, or "
        "without the text field or column. They are listed in lost_files.jsonl; one more stops the run.",
    ),
]
HeldoutFraction = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=0.99,
        metavar="SHARE",
        help="Share of documents to hold out for evaluation, chosen by a hash of their names.",
    ),
]


def choose_source(
    inputs: list[str] | None,
    *,
    suffixes: list[str] | None,
    text_field: str,
    lines: bool,
    python_stdlib: bool,
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES,
) -> TextSource:
    """Return the text source that the arguments select.

    Raises:
        typer.BadParameter: both inputs and the standard library are given, or neither; or an input names a
            variable that is not set.
    """
    if bool(inputs) == python_stdlib:
        raise typer.BadParameter("give either SOURCE or --python-stdlib", param_hint="SOURCE")
    if not inputs:
        return python_standard_library()
    try:
        expanded = tuple(map(expand_path, inputs))
    except UnknownNameError as error:
        raise typer.BadParameter(str(error), param_hint="SOURCE") from None
    return TextFiles(
        inputs=expanded,
        suffixes=tuple(suffixes or KNOWN_SUFFIXES),
        reading=ReadSettings(text_field=text_field, lines=lines, max_record_bytes=max_record_bytes),
    )
