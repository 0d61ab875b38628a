"""The commands of `python -m tests.bench`: options, tables and exit codes of every benchmark."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from cluster.targets import target_named
from pipeline.commands.shared import ConfigFile, Overrides, examples, set_up_logging
from pipeline.config.load import load_config
from pipeline.config.submit_section import Target
from pipeline.shared.console import open_console
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.progress import open_bar, open_progress
from tests.bench.submission import Measured, measure_local, measure_submitted

if TYPE_CHECKING:
    from tests.bench.attention import DocumentTimes
    from tests.bench.reference import Comparison

_MEGA = 1_000_000
# Where no terminal shows a bar, a line of progress appears this often.
_PROGRESS_SECONDS = 60.0

Name = TypeVar("Name", bound=str)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Measure this program and a baseline in one run, and print their ratio.",
)


@app.command(
    epilog=examples(
        "python -m tests.bench attention",
        "python -m tests.bench attention --rows 4096 --precision bf16 --minimum-speedup 2",
        "python -m tests.bench attention --rows 8192 --documents 8 --documents 128",
    )
)
def attention(
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of a sequence: tokens x slots.")] = 2048,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences.")] = 1,
    heads: Annotated[int, typer.Option(min=1, metavar="N", help="Query heads.")] = 8,
    query_groups: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Key heads; default: as many as query heads.", show_default=False
        ),
    ] = None,
    head_size: Annotated[int, typer.Option(min=1, metavar="N", help="Channels of a head.")] = 64,
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Type of queries, keys, values.")
    ] = "fp32",
    documents: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Documents of a row, divisors of --rows; repeatable. Default: 1, 4, 16 and 64.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed rounds; medians are shown.")] = 5,
    minimum_speedup: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="RATIO", help="Exit with 1 below this ratio.", show_default=False),
    ] = None,
) -> None:
    """Time attention with weighted keys, forward and backward.

    First beside a dense bias on the same inputs; then with rows of several documents, which do not see each
    other, beside the same documents as sequences of a batch: the difference is the price of a document.
    """
    import torch

    from megatron_ext.device import device
    from tests.bench.attention import AttentionSizes, time_attention, time_documents

    groups = query_groups or heads
    if heads % groups:
        raise typer.BadParameter(
            f"must divide --heads ({heads}), but is {groups}", param_hint="--query-groups"
        )
    counts = documents or [count for count in (1, 4, 16, 64) if rows % count == 0]
    uneven = [count for count in counts if rows % count]
    if uneven:
        raise typer.BadParameter(f"must divide --rows ({rows}), but is {uneven[0]}", param_hint="--documents")
    sizes = AttentionSizes(
        batch_size=batch_size,
        num_rows=rows,
        num_heads=heads,
        num_query_groups=groups,
        head_size=head_size,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )
    with open_bar("rounds", total=2 * (repeats + 1)) as bar:
        times = time_attention(sizes, repeats=repeats, device=device(), progress=bar)
        by_documents = time_documents(sizes, counts, repeats=repeats, device=device(), progress=bar)
    table = Table(
        title=f"{batch_size} x {rows} rows, {heads} heads ({groups} key heads) of {head_size}, {precision}, "
        f"{device()} with {torch.get_num_threads()} thread(s)"
    )
    for column in ("attention", "forward and backward", "speed"):
        table.add_column(column, justify="left" if column == "attention" else "right")
    table.add_row("dense bias", f"{1e3 * times.dense_seconds:.1f} ms", "1.00 x")
    table.add_row("weighted keys", f"{1e3 * times.weighted_seconds:.1f} ms", f"{times.speedup:.2f} x")
    console = Console()
    console.print(table)
    console.print(f"largest relative difference of outputs and gradients: {times.largest_difference:.1e}")
    console.print(_document_table(by_documents))
    too_slow = minimum_speedup is not None and times.speedup < minimum_speedup
    raise typer.Exit(ExitCode.CRASH if too_slow else ExitCode.DONE)


def _document_table(times: "Sequence[DocumentTimes]") -> Table:
    table = Table(title="documents of a row, forward and backward")
    for column in ("documents", "in rows", "as a batch", "price of a document", "largest difference"):
        table.add_column(column, justify="right")
    for each in times:
        table.add_row(
            str(each.num_documents),
            f"{1e3 * each.packed_seconds:.2f} ms",
            f"{1e3 * each.batched_seconds:.2f} ms",
            f"{1e6 * each.seconds_per_document:.0f} us",
            f"{each.largest_difference:.1e}",
        )
    return table


@app.command(
    epilog=examples(
        "python -m tests.bench compare-reference ../PonderLM-2 --python venv/bin/python --json record.json",
        "python -m tests.bench compare-reference --table record.json",
        "python -m tests.bench compare-reference --case vanilla --hidden-size 128 --layers 2 "
        "--vocab-size 512 --seq-length 64 --rounds 1 --steps 1",
    )
)
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
    unknown = [name for name in given or () if name not in known]
    if unknown:
        raise typer.BadParameter(f"must be among {', '.join(known)}, but is {unknown[0]}", param_hint=option)
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


@app.command(
    epilog=examples(
        "python -m tests.bench context",
        "python -m tests.bench context --tokens 8192 --layers 4 --hidden-size 256 --rounds 5",
    )
)
def context(
    tokens: Annotated[int, typer.Option(min=8, metavar="N", help="Tokens of the row of a step.")] = 4096,
    layers: Annotated[int, typer.Option(min=1, metavar="N")] = 2,
    hidden_size: Annotated[int, typer.Option(min=16, metavar="N", help="A multiple of 16.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Timed steps; medians are shown.")] = 3,
) -> None:
    """Time training steps on one long row by layout: one rank, two of the tensor or the context axis.

    All train the same PonderLM-3 (K = 1, J = 1, fp32) on the CPU, on the same random tokens, a rank on one
    thread, in turns after a comparison of the losses. Give it as many cores as ranks: two. Reads no data.
    """
    # The ranks communicate by gloo.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

    from tests.bench.context import ContextSizes, time_layouts
    from tests.bench.machine import machine_name

    if tokens % 4 or hidden_size % 16:
        raise typer.BadParameter("--tokens must be a multiple of 4 and --hidden-size of 16")
    sizes = ContextSizes(seq_length=tokens, num_layers=layers, hidden_size=hidden_size)
    with open_bar("rounds", total=rounds + 1) as bar:
        found = time_layouts(sizes, rounds=rounds, progress=bar)
    table = Table(title=f"Seconds of a training step on {tokens:,} tokens, {machine_name()}")
    for column in (
        "layout",
        "median",
        "range",
        "us per token",
        "of one rank",
        "CPU seconds of all ranks",
        "loss",
    ):
        table.add_column(column, justify="left" if column == "layout" else "right")
    for one in found.layouts:
        table.add_row(
            one.layout,
            f"{median(one.seconds):.2f}",
            f"{min(one.seconds):.2f}..{max(one.seconds):.2f}",
            f"{1e6 * median(one.seconds) / tokens:.0f}",
            f"{one.share_of(found.layouts[0]):.2f}",
            f"{median(one.cpu_seconds):.2f}",
            f"{one.loss:.6f}",
        )
    open_console().print(table, f"load of the machine: {found.load[0]:.1f} to {found.load[1]:.1f}")


@app.command(
    epilog=examples(
        "python -m tests.bench convert",
        "python -m tests.bench convert --layers 24 --hidden-size 1024 --heads 16 --ffn-size 4096",
    )
)
def convert(
    layers: Annotated[int, typer.Option(min=1, metavar="N")] = 32,
    hidden_size: Annotated[int, typer.Option(min=1, metavar="N")] = 2560,
    heads: Annotated[int, typer.Option(min=1, metavar="N")] = 32,
    ffn_size: Annotated[int, typer.Option(min=1, metavar="N")] = 10240,
    vocab_size: Annotated[int, typer.Option(min=1, metavar="N")] = 50304,
    dtype: Annotated[Literal["fp32", "fp16", "bf16"], typer.Option(help="Type of the weights.")] = "fp16",
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where three times the model fits; default: a temporary folder."),
    ] = None,
    maximum_gib: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="GIB", help="Exit with 1 above this peak.", show_default=False),
    ] = None,
) -> None:
    """Convert a Pythia-shaped model with random weights there and back, and measure time and peak memory.

    The default sizes are those of Pythia-2.8B. Leaves no files.
    """
    import torch

    from tests.bench.conversion import NeoxSizes, measure_conversion

    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    sizes = NeoxSizes(
        num_layers=layers, hidden_size=hidden_size, num_heads=heads, ffn_size=ffn_size, vocab_size=vocab_size
    )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        costs = measure_conversion(sizes, Path(scratch), dtype=dtypes[dtype])
    table = Table(title=f"{costs[0].num_values:,} parameters in {dtype}")
    for column in ("convert", "time", "of the CPU", "peak memory", "largest difference of logits"):
        table.add_column(column, justify="left" if column == "convert" else "right")
    for cost in costs:
        error = "not compared" if cost.max_error is None else f"{cost.max_error:.1e}"
        table.add_row(
            cost.direction,
            f"{cost.seconds:.1f} s",
            f"{cost.cpu_seconds:.1f} s",
            f"{cost.peak_bytes / 2**30:.2f} GiB",
            error,
        )
    Console().print(table)
    peak = max(cost.peak_bytes for cost in costs)
    is_too_much = maximum_gib is not None and peak > maximum_gib * 2**30
    raise typer.Exit(ExitCode.CRASH if is_too_much else ExitCode.DONE)


@app.command(
    epilog=examples(
        "python -m tests.bench data",
        "python -m tests.bench data --corpus-mb 1000 --workers 1 --workers 2 --json bench.json",
        "python -m tests.bench data --minimum-speedup 1.8 --minimum-lead 1.5 --minimum-reader-mtokens 50",
    )
)
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


@app.command(
    epilog=examples(
        "python -m tests.bench decode --config pipeline/recipes/ponderlm3_70m.yaml model.vocab_size=2048 "
        "training.precision=fp32 --json decode.json",
        "python -m tests.bench decode --config run.yaml --batch-size 32 training.precision=bf16",
        "python -m tests.bench decode --config run.yaml --other ../another-checkout",
    )
)
def decode(
    config: ConfigFile,
    overrides: Overrides = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            min=1, metavar="N", help="Sequences; may be repeated; default: 8, then 1.", show_default=False
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens before the timed ones.")
    ] = 16,
    new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Timed tokens of each sequence.")] = 12,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Also time N steps for every token; may be repeated; default: 1.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Timed rounds at most; medians are shown.")
    ] = 5,
    seconds: Annotated[
        float,
        typer.Option(min=0.0, metavar="N", help="No round begins that would end later."),
    ] = 240.0,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of the CPU.")] = 1,
    other: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            metavar="FOLDER",
            help="Another checkout of this program, whose decoder takes its turns.",
            show_default=False,
        ),
    ] = None,
    minimum_speedup: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="RATIO",
            help="Exit with 1 if one step per token is not this many times faster than no pruning.",
            show_default=False,
        ),
    ] = None,
    maximum_ratio: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="RATIO",
            help="Exit with 1 if vanilla takes more than this many times the time of transformers.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the figures here.", show_default=False),
    ] = None,
) -> None:
    """Time cached decoding of a PonderLM-3 by the steps its tokens take, on one rank and random tokens.

    The router is biased so that every token takes the same number of steps, or that given shares of the
    tokens take 0, 1, .. steps; these also token by token, all texts waiting for the slowest. Baselines are
    the same model without pruning, the same sizes without thoughts, and for GPT-NeoX, if transformers is
    installed, its decoding. All take turns, after one untimed round. The tables show medians over the rounds,
    calls of the layers per token, rows per call, and the time saved next to what FLOPs and what calls
    promise. With one thread of a CPU, ratios are of CPU seconds. Prompts are read before the clock starts.
    Reads no data.
    """
    set_up_logging()

    import torch

    from megatron_ext.device import device
    from megatron_ext.ponder.config import Method
    from pipeline.shared.files import write_atomically
    from tests.bench.decode import DecodeSizes, time_decoding
    from tests.bench.decode_figures import decode_figures, figures_json, render_figures
    from tests.bench.decode_other import other_ways
    from tests.bench.decode_transformers import transformers_ways
    from tests.bench.machine import machine_name

    layout = ("parallel.tensor=1", "parallel.pipeline=1", "parallel.data=1")
    run = load_config(config, [*(overrides or []), *layout])
    if run.ponder.method is not Method.PONDERLM3:
        raise typer.BadParameter(
            f"must be a run of ponderlm3, but is a run of {run.ponder.method}", param_hint="--config"
        )
    torch.set_num_threads(threads)
    sizes = [
        DecodeSizes(batch_size=size, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
        for size in dict.fromkeys(batch_size or (8, 1))
    ]
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        others = [] if other is None else stack.enter_context(other_ways(other, run, sizes, threads=threads))
        bar = stack.enter_context(open_bar("decoding", total=1))
        times = time_decoding(
            run,
            sizes,
            repeats=repeats,
            steps=steps or (1,),
            most_seconds=seconds,
            further=lambda of_sizes: [*transformers_ways(run, of_sizes), *others],
            watch=lambda share: bar.update(share, f"{share:.0%}"),
        )
    by_cpu = threads == 1 and device().type == "cpu"
    figures = decode_figures(times, by_cpu=by_cpu)
    loads = (load, os.getloadavg()[0])
    machine = f"{machine_name()}, {threads} thread(s), load {loads[0]:.1f} to {loads[1]:.1f}"
    what = f"{prompt_tokens} + {new_tokens} tokens, {run.training.precision}, {len(times[0].rounds)} round(s)"
    console = open_console()
    for one in figures:
        title = f"{run.name}: {one.batch_size} sequences, {what}; {machine}"
        for table in render_figures(one, title=title):
            console.print(table)
    if json_file is not None:
        settings = {"run": run.name, "what": what, "machine": machine}
        write_atomically(json_file, figures_json(figures, settings))
        typer.echo(f"written to {json_file}")
    first = figures[0]
    too_slow = minimum_speedup is not None and (first.speedup_at_one_step or 0.0) < minimum_speedup
    over = maximum_ratio is not None and (first.ratio_to_transformers or 0.0) > maximum_ratio
    raise typer.Exit(ExitCode.CRASH if too_slow or over else ExitCode.DONE)


@app.command(
    epilog=examples(
        "python -m tests.bench memory",
        "python -m tests.bench memory --maximum-error 0.1",
        "python -m tests.bench memory --config pipeline/recipes/tiny_ponderlm3.yaml parallel.recompute=full",
    )
)
def memory(
    overrides: Overrides = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="YAML file of a run; default: small runs of every method and recomputation.",
            show_default=False,
        ),
    ] = None,
    maximum_error: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="SHARE", help="Exit with 1 above this error.", show_default=False),
    ] = None,
) -> None:
    """Compare the memory that `megaponder plan` predicts with the live tensors of real training steps.

    Runs on one rank and random tokens; reads no data. Counts tensors, not what an allocator reserves.
    """
    set_up_logging()

    from tests.bench.memory import bench_configs, compare_memory

    runs = list(bench_configs())
    if config is not None or overrides:
        layout = ("parallel.tensor=1", "parallel.pipeline=1", "parallel.data=1")
        runs = [load_config(config, [*(overrides or []), *layout, "parallel.sequence_parallel=false"])]
    table = Table(title="MB of tensors: planned / measured")
    for column in ("run", "between steps", "at the peak", "error", "error of what a step adds"):
        table.add_column(column, justify="left" if column == "run" else "right")
    errors = []
    for run in runs:
        found = compare_memory(run)
        errors.append(abs(found.error))
        table.add_row(
            found.name,
            f"{found.planned_state / 1e6:.1f} / {found.measured_state / 1e6:.1f}",
            f"{found.planned_peak / 1e6:.1f} / {found.measured_peak / 1e6:.1f}",
            f"{found.error:+.1%}",
            f"{found.activation_error:+.1%}",
        )
    console = open_console()
    console.print(table)
    console.print(f"largest error {max(errors):.1%}")
    is_too_much = maximum_error is not None and max(errors) > maximum_error
    raise typer.Exit(ExitCode.CRASH if is_too_much else ExitCode.DONE)


@app.command(
    epilog=examples(
        "python -m tests.bench savings",
        "python -m tests.bench savings --config run.yaml --gradient-passes 1 --gradient-passes 3",
    )
)
def savings(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="YAML file of a run; default: PonderLM-2 of six layers, K = 3, J = 2.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    gradient_passes: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Passes with gradients; default: 2 and 1.", show_default=False),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed rounds; medians are shown.")] = 3,
) -> None:
    """Time training steps whose gradients flow through all passes and through the last ones, in turns.

    Runs on one rank and random tokens; reads no data. Memory counts tensors, not what an allocator reserves.
    """
    set_up_logging()

    from tests.bench.savings import measure_savings, small_run

    layout = ("parallel.tensor=1", "parallel.pipeline=1", "parallel.data=1")
    given = [*(overrides or []), *layout, "parallel.sequence_parallel=false"]
    run = load_config(config, given) if config is not None or overrides else small_run("ponderlm2")
    numbers = gradient_passes or [2, 1]
    found = measure_savings(run, [None, *numbers], repeats=repeats)
    table = Table(title=f"training steps of {run.name}, and shares of the full method")
    for column in ("passes with gradients", "seconds", "MB a step adds", "GFLOP per token"):
        table.add_column(column, justify="right")
    full = found[0]
    for one in found:
        table.add_row(
            "all" if one.gradient_passes is None else str(one.gradient_passes),
            f"{one.seconds:.2f} ({one.seconds / full.seconds:.2f})",
            f"{one.activation_bytes / 1e6:.0f} ({one.activation_bytes / full.activation_bytes:.2f})",
            f"{one.flops / 1e9:.3f} ({one.flops / full.flops:.2f})",
        )
    open_console().print(table)


@app.command(
    epilog=examples(
        "python -m tests.bench methods",
        'python -m tests.bench methods --case vanilla --case "ponderlm2 K1 J3" --precision fp32 --rounds 5',
    )
)
def methods(
    cases: Annotated[
        list[str] | None,
        typer.Option(
            "--case",
            metavar="NAME",
            help="At least two, compared with the first; default: PonderLM-2 and PonderLM-3, K1 J3.",
            show_default=False,
        ),
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option("--precision", metavar="TYPE", help="fp32 or bf16; default: both.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Timed steps; medians are shown.")] = 3,
) -> None:
    """Time training steps of several methods, in turns in one process on one thread.

    The model is that of `step`. Runs on random tokens; reads no data and leaves no files.
    """
    set_up_logging()

    from tests.bench.machine import machine_name
    from tests.bench.methods import time_methods
    from tests.bench.step import StepSizes

    chosen = cases or ["ponderlm2 K1 J3", "ponderlm3 K1 J3"]
    _refuse_unknown_cases(chosen)
    if len(set(chosen)) < 2:
        raise typer.BadParameter("must name at least two cases", param_hint="--case")
    table = Table(title=f"Seconds of a training step, {machine_name()}, one thread")
    for column in ("case", "median", "range", f"time relative to {chosen[0]}", "range of the rounds"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for precision in precisions or ["fp32", "bf16"]:
        for found in time_methods(chosen, precision, StepSizes(), rounds=rounds):
            table.add_row(
                f"{found.case}, {precision}",
                f"{found.median_seconds:.3f}",
                f"{min(found.seconds):.3f}..{max(found.seconds):.3f}",
                f"{found.median_relative:.3f}",
                f"{min(found.relative):.3f}..{max(found.relative):.3f}",
            )
    open_console().print(table)


@app.command(
    epilog=examples(
        "python -m tests.bench metrics --config pipeline/recipes/demo.yaml",
        "python -m tests.bench metrics --config run.yaml metrics.interval=10 --maximum-share 0.01",
    )
)
def metrics(
    config: ConfigFile,
    overrides: Overrides = None,
    intervals: Annotated[
        int, typer.Option(min=1, metavar="N", help="Timed logging intervals; medians are shown.")
    ] = 3,
    maximum_share: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="SHARE", help="Exit with 1 above this share.", show_default=False),
    ] = None,
) -> None:
    """Time the statistics and logs of a run as a share of its training steps, on one rank and random tokens.

    Reads no data and leaves no files.
    """
    set_up_logging()

    from megatron_ext.device import device
    from tests.bench.metrics import measure_metrics

    layout = ("parallel.tensor=1", "parallel.data=1", "parallel.sequence_parallel=false")
    run = load_config(config, [*(overrides or []), *layout])
    with tempfile.TemporaryDirectory() as folder:
        cost = measure_metrics(run, Path(folder), num_intervals=intervals)
    table = Table(title=f"{run.name}, {device()}, logging every {cost.interval} steps")
    for column in ("what", "per step", "share of the step"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = {
        "training step": cost.step_seconds,
        "sums over tokens": cost.statistics_seconds,
        "logging": cost.logging_seconds / cost.interval,
        "all metrics": cost.metrics_seconds,
    }
    for name, seconds in rows.items():
        table.add_row(name, f"{1e3 * seconds:.3f} ms", f"{seconds / cost.step_seconds:.2%}")
    Console().print(table)
    is_too_much = maximum_share is not None and cost.share > maximum_share
    raise typer.Exit(ExitCode.CRASH if is_too_much else ExitCode.DONE)


@app.command(
    epilog=examples(
        "python -m tests.bench pipeline",
        "python -m tests.bench pipeline --stages 2 --micro-batches 8 ponder.num_jacobi_iterations=3",
        "python -m tests.bench pipeline --config run.yaml --stages 4 --micro-batches 16",
    )
)
def pipeline(
    overrides: Overrides = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="YAML file of a run; default: a small PonderLM-2 made for this benchmark.",
            show_default=False,
        ),
    ] = None,
    stages: Annotated[
        list[int] | None,
        typer.Option(min=2, metavar="P", help="Pipeline stages; can be repeated. Default: 2 and 4."),
    ] = None,
    micro_batches: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="M", help="Micro-batches of a step; can be repeated. Default: 4 and 8."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed rounds; medians are shown.")] = 5,
) -> None:
    """Time passes as virtual pipeline stages and with a pipeline flush between passes.

    Both run the same pipeline stages on the same random tokens, one rank per stage on this machine, in turns.
    Timed are forward, backward and the reduction of gradients. The table also shows the speedup expected from
    the order of the work alone. Reads no data.

    Exit code 1: the gradients of the two differ by more than rounding.
    """
    set_up_logging()

    import torch

    from tests.bench.machine import num_processors
    from tests.bench.pipeline import ROUNDING, load_bench_config, render_pass_times, time_passes

    stages, micro_batches = stages or [2, 4], micro_batches or [4, 8]
    unequal = [f"{number} on {size}" for size in stages for number in micro_batches if number % size]
    if unequal:
        raise typer.BadParameter(
            f"must be multiples of every --stages, but are {', '.join(unequal)}",
            param_hint="--micro-batches",
        )
    if torch.cuda.is_available() and max(stages) > num_processors():
        raise typer.BadParameter(
            f"must be at most {num_processors()}, the GPUs of this machine, but is {max(stages)}; "
            "set CUDA_VISIBLE_DEVICES= to time the CPU",
            param_hint="--stages",
        )
    # Check all settings before timing anything.
    runs = [load_bench_config(config, overrides or [], num_stages=number) for number in stages]
    times = [row for run in runs for row in time_passes(run, micro_batches, repeats=repeats)]
    open_console().print(render_pass_times(runs[0], times))
    largest = max(row.largest_difference for row in times)
    raise typer.Exit(ExitCode.DONE if largest <= ROUNDING[runs[0].training.precision] else ExitCode.CRASH)


@app.command(
    epilog=examples(
        "python -m tests.bench step",
        "python -m tests.bench step --other ../before --case vanilla --precision bf16 --rounds 9",
    )
)
def step(
    others: Annotated[
        list[Path] | None,
        typer.Option(
            "--other",
            metavar="FOLDER",
            help="Another checkout, which takes turns; can be repeated.",
            show_default=False,
        ),
    ] = None,
    cases: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="NAME", help="Default: all.", show_default=False),
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option("--precision", metavar="TYPE", help="fp32 or bf16; default: both.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Timed steps; medians are shown.")] = 5,
    with_transformers: Annotated[
        bool, typer.Option("--transformers/--no-transformers", help="Also time its vanilla model.")
    ] = True,
) -> None:
    """Time training steps of this checkout, of others and of transformers, step by step in turns.

    Each runs on one thread in a process of its own, on random tokens; reads no data and leaves no files.
    """
    from tests.bench.machine import machine_name
    from tests.bench.step import CASES, HERE, StepSizes, time_cases

    chosen = cases or list(CASES)
    _refuse_unknown_cases(chosen)
    checkouts = {"this checkout": HERE} | {str(folder): folder.resolve() for folder in others or []}
    table = Table(title=f"Seconds of a training step, {machine_name()}, one thread each")
    for column in (
        "case",
        "program",
        "median",
        "range",
        "of the CPU",
        "speed of this checkout",
        "peak",
        "load",
    ):
        table.add_column(column, justify="left" if column in ("case", "program") else "right")
    measured = time_cases(
        chosen,
        precisions or ["fp32", "bf16"],
        StepSizes(),
        checkouts=checkouts,
        with_transformers=with_transformers,
        rounds=rounds,
    )
    for found in measured:
        for times in found.programs:
            table.add_row(
                f"{found.case}, {found.precision}",
                times.program,
                f"{times.median_seconds:.3f}",
                f"{min(times.timed):.3f}..{max(times.timed):.3f}",
                f"{median(times.cpu_seconds[times.num_untimed :]):.3f}",
                f"{found.ratio(times):.2f} x",
                f"{times.peak_bytes / 2**30:.2f} GiB",
                f"{found.load[0]:.0f}..{found.load[1]:.0f}",
            )
    open_console().print(table)


def _refuse_unknown_cases(chosen: Sequence[str]) -> None:
    from tests.bench.step import CASES

    unknown = sorted(set(chosen) - set(CASES))
    if unknown:
        raise typer.BadParameter(
            f"must be among {', '.join(CASES)}, but is {unknown[0]}", param_hint="--case"
        )


@app.command(
    epilog=examples(
        "python -m tests.bench submit --config run.yaml --target slurm submit.nodes=2 train-iters=200",
        "python -m tests.bench submit --config run.yaml --target ray --rounds 5 --maximum-overhead 0.03",
    )
)
def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    target: Annotated[Target, typer.Option("--target", "-t", help="Cluster to submit to.")] = "slurm",
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Runs of each; medians are shown.")] = 3,
    maximum_overhead: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="SHARE",
            help="Exit with 1 if steps take longer by more than this share.",
            show_default=False,
        ),
    ] = None,
    maximum_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="S", help="Exit with 1 if submitting takes longer.", show_default=False
        ),
    ] = None,
) -> None:
    """Time the submission of a run, and its steps on a cluster and in the same run started here.

    The runs take turns and write to folders of their own inside output_dir, which are removed when all have
    succeeded. Needs as many processors here as on the cluster.
    """
    settings = [*(overrides or []), f"submit.target={target}", "metrics.interval=1"]
    run = load_config(config, settings)
    where = target_named(run.submit.target, ray_address=run.submit.ray_address)
    folder = run.output_dir.resolve() / "bench"
    here: list[Measured] = []
    there: list[Measured] = []
    for number in range(rounds):
        here.append(measure_local(config, settings, folder / f"here-{number}"))
        there.append(measure_submitted(where, config, settings, folder / f"{target}-{number}"))
    shutil.rmtree(folder)
    _print_submissions(target, here, there)
    overhead = _median_step(there) / _median_step(here) - 1
    is_too_much = maximum_overhead is not None and overhead > maximum_overhead
    is_too_slow = maximum_seconds is not None and _median_start(there) > maximum_seconds
    raise typer.Exit(ExitCode.CRASH if is_too_much or is_too_slow else ExitCode.DONE)


def _print_submissions(target: Target, here: list[Measured], there: list[Measured]) -> None:
    table = Table(title=f"{len(here)} runs of {here[0].num_steps} steps each")
    for column in ("where", "`submit` returns after", "step", "step, ratio"):
        table.add_column(column, justify="left" if column == "where" else "right")
    own = _median_step(here)
    table.add_row("started here", "-", f"{1e3 * own:.1f} ms", "1.000")
    step = _median_step(there)
    table.add_row(target, f"{_median_start(there):.2f} s", f"{1e3 * step:.1f} ms", f"{step / own:.3f}")
    open_console().print(table)


def _median_step(runs: list[Measured]) -> float:
    return median(run.step_seconds for run in runs)


def _median_start(runs: list[Measured]) -> float:
    return median(run.submit_seconds for run in runs)
