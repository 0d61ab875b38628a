"""`python -m tests.bench attention`: attention with weighted keys, and what documents cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from pipeline.commands.shared import examples
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.progress import open_bar

if TYPE_CHECKING:
    from tests.bench.attention import DocumentTimes

EPILOG = examples(
    "python -m tests.bench attention",
    "python -m tests.bench attention --rows 4096 --precision bf16 --minimum-speedup 2",
    "python -m tests.bench attention --rows 8192 --documents 8 --documents 128",
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
