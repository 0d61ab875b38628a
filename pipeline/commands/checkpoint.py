"""`megaponder checkpoint`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.checkpoint.inventory import take_inventory, tracker_problem
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.commands.checkpoint_tables import (
    comparison_table,
    inventory_rows,
    inventory_table,
    state_table,
    tensor_rows,
    tensor_table,
)
from pipeline.commands.shared import Checkpoint, Iteration, examples
from pipeline.shared.exit_codes import ExitCode

app = typer.Typer(
    no_args_is_help=True,
    help="Look at checkpoints, prove them whole, compare and rewrite them.",
    epilog=examples(
        "megaponder checkpoint list runs/demo/checkpoints",
        "megaponder checkpoint verify runs/demo/checkpoints",
    ),
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="An empty or absent folder.")]
Tensors = Annotated[
    str, typer.Option(metavar="PATTERN", help="Names of tensors, with * and ? as in a shell, quoted.")
]


@app.command(
    "list",
    epilog=examples(
        "megaponder checkpoint list runs/demo/checkpoints",
        "megaponder checkpoint list runs/demo/checkpoints --json",
    ),
)
def list_checkpoints(checkpoint: Checkpoint, as_json: AsJson = False) -> None:
    """List the checkpoints of a run: iteration, size, progress, whether all files are there.

    Looks at sizes only; `verify` reads the files.
    """
    entries = take_inventory(checkpoint, reads=False)
    if as_json:
        typer.echo(json.dumps(inventory_rows(entries), indent=2))
        return
    Console().print(inventory_table(entries, title=str(checkpoint)))
    _tell_tracker(checkpoint)


@app.command(
    epilog=examples(
        "megaponder checkpoint verify runs/demo/checkpoints",
        "megaponder checkpoint verify runs/demo/checkpoints/iter_0000100",
    )
)
def verify(checkpoint: Checkpoint, iteration: Iteration = None, as_json: AsJson = False) -> None:
    """Prove checkpoints whole: hold every file against the checksums written with it.

    Takes one iter_ folder, or all of a run. Exit code 1 where a file is damaged or missing; each is named.
    """
    entries = take_inventory(checkpoint, iteration=iteration, reads=True)
    damaged = [entry for entry in entries if entry.damage]
    if as_json:
        typer.echo(json.dumps(inventory_rows(entries), indent=2))
    else:
        for entry in entries:
            typer.echo(f"{entry.folder}: {'DAMAGED' if entry.damage else 'whole'}")
            for item in entry.damage:
                typer.echo(f"  {item}")
        _tell_tracker(checkpoint)
    raise typer.Exit(ExitCode.CRASH if damaged else ExitCode.DONE)


@app.command(
    epilog=examples(
        "megaponder checkpoint show runs/demo/checkpoints",
        "megaponder checkpoint show runs/demo/checkpoints --iteration 100 --tensors '*ponder*'",
    )
)
def show(
    checkpoint: Checkpoint, iteration: Iteration = None, tensors: Tensors = "*", as_json: AsJson = False
) -> None:
    """Show what a checkpoint holds: the run's progress, its tensors with shapes and types, its settings."""
    from pipeline.checkpoint.folder import CONFIG_NAME
    from pipeline.checkpoint.offline import OfflineReader
    from pipeline.checkpoint.state import read_train_state

    folder = resolve_checkpoint(checkpoint, iteration=iteration)
    state, rows = read_train_state(folder), tensor_rows(OfflineReader(folder), pattern=tensors)
    config = (folder / CONFIG_NAME).read_text(encoding="utf-8")
    if as_json:
        content = {"folder": str(folder), "state": asdict(state), "tensors": rows, "config": config}
        typer.echo(json.dumps(content, indent=2))
        return
    console = Console()
    console.print(state_table(folder, state))
    console.print(tensor_table(rows))
    typer.echo(config, nl=False)


@app.command(
    epilog=examples(
        "megaponder checkpoint diff runs/a/checkpoints runs/b/checkpoints",
        "megaponder checkpoint diff runs/a/checkpoints/iter_0000100 runs/a/checkpoints/iter_0000200 "
        "--tensors 'decoder.*'",
    )
)
def diff(first: Checkpoint, second: Checkpoint, tensors: Tensors = "*", as_json: AsJson = False) -> None:
    """Compare two checkpoints tensor by tensor: weights and the optimizer's moments.

    The layouts that they were saved on may differ. Exit code 1 where any value differs.
    """
    from pipeline.checkpoint.comparison import compare_checkpoints

    folders = [resolve_checkpoint(path) for path in (first, second)]
    compared = list(compare_checkpoints(*folders, pattern=tensors))
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in compared], indent=2))
    else:
        Console().print(comparison_table(compared, *folders))
    has_equal = all(item.is_equal for item in compared)
    raise typer.Exit(ExitCode.DONE if has_equal else ExitCode.CRASH)


@app.command(
    epilog=examples(
        "megaponder checkpoint reshard runs/demo/checkpoints --files 1 --output runs/demo/one_file",
    )
)
def reshard(
    checkpoint: Checkpoint,
    output: Output,
    files: Annotated[
        int, typer.Option(min=1, metavar="N", help="Files for the tensors; fewer where tensors are large.")
    ] = 1,
    iteration: Iteration = None,
) -> None:
    """Write a checkpoint anew, with its tensors in another number of files.

    Never needed to train or evaluate on another layout: every checkpoint loads onto any tensor, pipeline and
    data parallel sizes as it is. It serves file systems, and copies, that like few large files or many small.
    """
    from pipeline.checkpoint.rewriting import reshard as rewrite

    folder = rewrite(resolve_checkpoint(checkpoint, iteration=iteration), output, num_files=files)
    typer.echo(f"written to {folder}")


@app.command(
    epilog=examples(
        "megaponder checkpoint average runs/demo/checkpoints 800 900 1000 --output runs/demo/averaged",
        "megaponder eval runs/demo/averaged",
    )
)
def average(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINTS", help="Folder of a run's checkpoints.")],
    iterations: Annotated[
        list[int], typer.Argument(min=0, metavar="N N...", help="Iterations to average, at least two.")
    ],
    output: Output,
) -> None:
    """Write the mean of the weights of several iterations, for eval, generate and init_from.

    Computed in float64. The optimizer's state has no mean, so training cannot go on from the result as if
    nothing had happened: give it to a new run as init_from.path.
    """
    from pipeline.checkpoint.rewriting import average as write_average

    if len(set(iterations)) < 2:
        raise typer.BadParameter("must be at least two different ones", param_hint="'N N...'")
    sources = [resolve_checkpoint(checkpoint, iteration=number) for number in sorted(set(iterations))]
    typer.echo(f"written to {write_average(sources, output)}")


def _tell_tracker(checkpoint: Path) -> None:
    from pipeline.checkpoint.folder import iteration_of

    problem = None if iteration_of(checkpoint) is not None else tracker_problem(checkpoint)
    if problem is not None:
        typer.echo(f"tracker: {problem}", err=True)
