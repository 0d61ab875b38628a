"""`python -m tests.bench data`: preparation and reading of data."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import examples, set_up_logging
from pipeline.shared.console import open_console
from pipeline.shared.exit_codes import ExitCode

EPILOG = examples(
    "python -m tests.bench data",
    "python -m tests.bench data --corpus-mb 1000 --workers 1 --workers 2 --json bench.json",
    "python -m tests.bench data --minimum-speedup 1.8 --minimum-lead 1.5 --minimum-reader-mtokens 50",
)

_MEGA = 1_000_000


def data(
    corpus_mb: Annotated[
        int,
        typer.Option(min=1, metavar="MB", help="Text to generate, prepare and remove again."),
    ] = 16,
    workers: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Ray workers; can be repeated. Default: 1 and 2."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="Default: one trained on the text.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=64, metavar="N", help="Rows for the reader.")] = 16_384,
    seq_length: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of a row.")] = 2048,
    rows_per_step: Annotated[int, typer.Option(min=1, metavar="N", help="Rows read at a time.")] = 64,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Timed rounds of the reader; medians are shown.")
    ] = 3,
    minimum_speedup: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="RATIO",
            show_default=False,
            help="Exit with 1 if the most workers are not this many times as fast as a plain process.",
        ),
    ] = None,
    minimum_lead: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="RATIO",
            show_default=False,
            help="Exit with 1 if the complete command is not this many times as fast as datatrove.",
        ),
    ] = None,
    minimum_reader_mtokens: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="MILLION",
            show_default=False,
            help="Exit with 1 if the reader delivers fewer million tokens per second and core.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers.", show_default=False)
    ] = None,
) -> None:
    """Time the preparation and the reading of data, and alternatives to both, on the same files.

    The text is that of the Python sources on this machine, repeated with changes up to the requested size.
    datatrove is included if it is installed: pip install -e '.[bench]'.
    """
    from tests.bench.data import DataBenchSettings, measure_data
    from tests.bench.data_reading import ReadingSizes
    from tests.bench.data_tables import render_measurements

    if rows_per_step > rows:
        raise typer.BadParameter(f"must be at most --rows ({rows}), but is {rows_per_step}")
    set_up_logging()
    measured = measure_data(
        DataBenchSettings(
            corpus_bytes=corpus_mb * _MEGA,
            worker_counts=tuple(sorted(set(workers or (1, 2)))),
            tokenizer=tokenizer,
            reading=ReadingSizes(num_rows=rows, seq_length=seq_length, rows_per_step=rows_per_step),
            repeats=repeats,
        )
    )
    open_console().print(render_measurements(measured))
    if json_file is not None:
        json_file.write_text(json.dumps(measured.facts(), indent=1) + "\n", encoding="utf-8")
    falls_short = measured.falls_short(
        minimum_speedup=minimum_speedup,
        minimum_lead=minimum_lead,
        minimum_reader_tokens_per_second=(
            None if minimum_reader_mtokens is None else minimum_reader_mtokens * _MEGA
        ),
    )
    raise typer.Exit(ExitCode.CRASH if falls_short else ExitCode.DONE)
