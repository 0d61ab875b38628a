"""`python -m tests.bench convert`: conversion from and to Hugging Face."""

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from pipeline.commands.shared import examples
from pipeline.shared.exit_codes import ExitCode

EPILOG = examples(
    "python -m tests.bench convert",
    "python -m tests.bench convert --layers 24 --hidden-size 1024 --heads 16 --ffn-size 4096",
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
