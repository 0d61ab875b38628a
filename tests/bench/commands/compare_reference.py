"""`python -m tests.bench compare-reference`: beside the published code of PonderLM-2."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pipeline.commands.shared import examples
from pipeline.shared.console import open_console
from pipeline.shared.progress import open_progress
from tests.bench.commands.choices import refuse_unknown

if TYPE_CHECKING:
    from tests.bench.reference import Comparison

EPILOG = examples(
    "python -m tests.bench compare-reference ../PonderLM-2 --python venv/bin/python --json record.json",
    "python -m tests.bench compare-reference --table record.json",
    "python -m tests.bench compare-reference --case vanilla --hidden-size 128 --layers 2 "
    "--vocab-size 512 --seq-length 64 --rounds 1 --steps 1",
)

# Where no terminal shows a bar, a line of progress appears this often.
_PROGRESS_SECONDS = 60.0
Name = TypeVar("Name", bound=str)


def compare_reference(
    checkout: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Checkout of the published code of PonderLM-2 (github.com/LUMIA-Group/PonderLM-2). "
            "Not needed for vanilla.",
            show_default=False,
        ),
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(
            "--python",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Interpreter of an environment with torch and the transformers that the published code "
            "needs (4.46.1). Default: this one.",
            show_default=False,
        ),
    ] = None,
    cases: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="NAME", help="Repeatable; default: all.", show_default=False),
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="TYPE",
            help="Of training steps, fp32 or bf16; repeatable; default: both.",
            show_default=False,
        ),
    ] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option(
            "--part", metavar="NAME", help="train or decode; repeatable; default: both.", show_default=False
        ),
    ] = None,
    hidden_size: Annotated[int, typer.Option(min=8, metavar="N")] = 512,
    layers: Annotated[int, typer.Option(min=1, metavar="N")] = 6,
    vocab_size: Annotated[int, typer.Option(min=2, metavar="N")] = 4096,
    seq_length: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of a trained row.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of a training step.")] = 2,
    check_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Row length at which losses are compared before timing.")
    ] = 64,
    prompt_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of a prompt.")] = 32,
    new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Timed tokens of a text, after its first.")
    ] = 16,
    texts: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Texts decoded together; repeatable; default: 8 and 1.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Processes of each side, in turns.")] = 3,
    steps: Annotated[
        int, typer.Option(min=1, metavar="N", help="Timed steps, or decoded batches, of a process.")
    ] = 2,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of each process.")] = 1,
    with_installed: Annotated[
        bool,
        typer.Option(
            "--installed/--no-installed", help="Vanilla also beside transformers of this environment."
        ),
    ] = True,
    huge_pages: Annotated[
        bool,
        typer.Option("--huge-pages", help="All sides allocate huge pages: less noise between processes."),
    ] = False,
    timeout: Annotated[float, typer.Option(min=1.0, metavar="S", help="Limit on one process.")] = 3600.0,
    note: Annotated[
        str, typer.Option(metavar="TEXT", help="Kept in the record and shown below its versions.")
    ] = "",
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="The record, written after every case.", show_default=False
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Render this record as Markdown, and measure nothing.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Time training steps, decoding and the reading of prompts beside the published code of PonderLM-2.

    Vanilla is compared with the stock models of transformers. Both sides load the same weights and tokens;
    losses and decoded tokens are compared first, and a difference ends the command before anything is timed.
    Each process is a new one, and the sides take turns. Reads no data; the result is a table in Markdown.

    Exit code 1: both sides do not compute the same, or a process failed.
    """
    from tests.bench.reference_record import read_record, render_record

    if table is not None:
        typer.echo(render_record(read_record(table)), nl=False)
        return
    from tests.bench.reference import Comparison
    from tests.bench.reference_cases import ARCHITECTURES, CASES, PARTS, PRECISIONS, ComparisonSizes
    from tests.bench.step import StepSizes

    chosen_parts = _chosen(parts, PARTS, "--part")
    comparison = Comparison(
        checkout=None if checkout is None else checkout.resolve(),
        # Not resolved: the link itself is what leads an interpreter to its environment.
        python=Path(sys.executable) if python is None else python.absolute(),
        cases=[CASES[name] for name in _chosen(cases, tuple(CASES), "--case")],
        precisions=_chosen(precisions, PRECISIONS, "--precision"),
        parts=chosen_parts,
        sizes=ComparisonSizes(
            model=StepSizes(
                hidden_size=hidden_size,
                num_layers=layers,
                vocab_size=vocab_size,
                seq_length=seq_length,
                micro_batch_size=batch_size,
                architecture=ARCHITECTURES[chosen_parts[0]],
            ),
            check_tokens=check_tokens,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            decode_batch_sizes=tuple(texts or (8, 1)),
        ),
        rounds=rounds,
        steps=steps,
        threads=threads,
        with_installed=with_installed,
        huge_pages=huge_pages,
        timeout_seconds=timeout,
    )
    _check_published_files(comparison)
    _compare_and_print(comparison, note=note, json_file=json_file)


def _chosen(given: Sequence[str] | None, known: Sequence[Name], option: str) -> list[Name]:
    """Return the known names that were given, in their order, or all."""
    refuse_unknown(given or (), known, option)
    return [name for name in known if given is None or name in given]


def _check_published_files(comparison: "Comparison") -> None:
    from tests.bench.reference_cases import model_files

    folder = comparison.checkout
    needed = model_files(comparison.cases, comparison.parts, folder or Path())
    missing = [str(file) for file in needed if folder is None or not file.is_file()]
    if missing:
        raise typer.BadParameter(
            f"must be a checkout with {', '.join(missing)}, but "
            f"{'none is given' if folder is None else f'{folder} has no such file'}; "
            "--case vanilla needs none",
            param_hint="DIR",
        )


def _compare_and_print(comparison: "Comparison", *, note: str, json_file: Path | None) -> None:
    from pipeline.shared.files import write_atomically
    from tests.bench.reference import compare, total_units
    from tests.bench.reference_record import provenance, record_json, render_record

    head = provenance(comparison, note=note)
    record = head
    console = open_console(stderr=True)
    with open_progress(
        console, "comparing", total=total_units(comparison), interval_seconds=_PROGRESS_SECONDS
    ) as progress:
        for found in compare(comparison, progress=progress):
            record = head | found
            if json_file is not None:
                write_atomically(json_file, record_json(record))
    typer.echo(render_record(record), nl=False)
