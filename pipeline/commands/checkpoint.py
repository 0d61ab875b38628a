"""`megaponder checkpoint`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline.checkpoint.inventory import take_inventory, tracker_problem
from pipeline.checkpoint.places import checkpoints_at
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.commands.checkpoint_tables import (
    comparison_table,
    identity_table,
    inventory_rows,
    inventory_table,
    state_table,
    tensor_rows,
    tensor_table,
)
from pipeline.commands.shared import Checkpoint, Iteration, JsonFile, examples, show_or_write
from pipeline.shared.console import open_console, say
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.folder_lock import output_lock
from pipeline.shared.progress import open_bar
from pipeline.shared.units import render_bytes

app = typer.Typer(
    no_args_is_help=True,
    help="List, verify, compare and rewrite checkpoints.",
    epilog=examples(
        "megaponder checkpoint list runs/demo/checkpoints",
        "megaponder checkpoint verify runs/demo/checkpoints",
    ),
)

Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="An empty or absent folder.")]
Tensors = Annotated[
    str,
    typer.Option(metavar="PATTERN", help="Names of tensors, with the wildcards * and ? of a shell, quoted."),
]


@app.command(
    "list",
    epilog=examples(
        "megaponder checkpoint list runs/demo/checkpoints",
        "megaponder checkpoint list runs/demo/checkpoints --json -",
    ),
)
def list_checkpoints(checkpoint: Checkpoint, json_file: JsonFile = None) -> None:
    """List the checkpoints of a run: iteration, size, progress, and whether files are missing.

    Checks presence and sizes only; `verify` reads the files.
    """
    entries = take_inventory(checkpoint, reads=False)

    def show() -> None:
        open_console().print(inventory_table(entries, title=str(checkpoint)))
        _report_tracker(checkpoint)

    show_or_write(show, inventory_rows(entries), json_file)


@app.command(
    epilog=examples(
        "megaponder checkpoint verify runs/demo/checkpoints",
        "megaponder checkpoint verify runs/demo/checkpoints/iter_0000100",
    )
)
def verify(checkpoint: Checkpoint, iteration: Iteration = None, json_file: JsonFile = None) -> None:
    """Verify checkpoints: compare every file with its checksum.

    Takes one iter_ folder, or all of a run. Lists damaged and missing files, with exit code 1.
    """
    entries = take_inventory(checkpoint, iteration=iteration, reads=True)
    damaged = [entry for entry in entries if entry.damage]

    def show() -> None:
        for entry in entries:
            say(f"{entry.folder}: {'DAMAGED' if entry.damage else 'intact'}")
            for item in entry.damage:
                say(f"  {item}")
        _report_tracker(checkpoint)

    show_or_write(show, inventory_rows(entries), json_file)
    raise typer.Exit(ExitCode.CRASH if damaged else ExitCode.DONE)


@app.command(
    epilog=examples(
        "megaponder checkpoint show runs/demo/checkpoints",
        "megaponder checkpoint show runs/demo/checkpoints --iteration 100 --tensors '*ponder*'",
    )
)
def show(
    checkpoint: Checkpoint, iteration: Iteration = None, tensors: Tensors = "*", json_file: JsonFile = None
) -> None:
    """Show the content of a checkpoint: progress of the run, what it belongs to, tensors, settings."""
    from pipeline.checkpoint.description import read_description
    from pipeline.checkpoint.folder import CONFIG_NAME
    from pipeline.checkpoint.identity import read_identity
    from pipeline.checkpoint.state import read_train_state

    folder = resolve_checkpoint(checkpoint, iteration=iteration)
    state, rows = read_train_state(folder), tensor_rows(read_description(folder), pattern=tensors)
    _check_matches(rows, tensors)
    config, identity = (folder / CONFIG_NAME).read_text(encoding="utf-8"), read_identity(folder)
    content = {
        "folder": str(folder),
        "state": asdict(state),
        "identity": None if identity is None else asdict(identity),
        "tensors": rows,
        "config": config,
    }

    def show_content() -> None:
        console = open_console()
        console.print(state_table(folder, state))
        if identity is not None:
            console.print(identity_table(identity))
        console.print(tensor_table(rows))
        say(config, nl=False)

    show_or_write(show_content, content, json_file)


@app.command(
    epilog=examples(
        "megaponder checkpoint diff runs/a/checkpoints runs/b/checkpoints",
        "megaponder checkpoint diff runs/a/checkpoints/iter_0000100 runs/a/checkpoints/iter_0000200 "
        "--tensors 'decoder.*'",
    )
)
def diff(first: Checkpoint, second: Checkpoint, tensors: Tensors = "*", json_file: JsonFile = None) -> None:
    """Compare two checkpoints tensor by tensor: weights and the optimizer's moments.

    They may have been saved on different parallel layouts. Exit code 1 if any value differs.
    """
    folders = [resolve_checkpoint(path) for path in (first, second)]
    from pipeline.checkpoint.comparison import compare_checkpoints

    compared = list(compare_checkpoints(*folders, pattern=tensors))
    _check_matches(compared, tensors)
    show_or_write(
        lambda: open_console().print(comparison_table(compared, *folders)),
        [asdict(item) for item in compared],
        json_file,
    )
    are_equal = all(item.is_equal for item in compared)
    raise typer.Exit(ExitCode.DONE if are_equal else ExitCode.CRASH)


@app.command(
    epilog=examples(
        "megaponder checkpoint reshard runs/demo/checkpoints --files 1 --output runs/demo/one_file",
    )
)
def reshard(
    checkpoint: Checkpoint,
    output: Output,
    files: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Number of files for the tensors; fewer if tensors are large."),
    ] = 1,
    iteration: Iteration = None,
) -> None:
    """Rewrite a checkpoint with its tensors in another number of files.

    Not needed for training or evaluating on another layout: every checkpoint loads on any tensor, pipeline
    and data parallel sizes. It is for file systems that prefer few large files or many small ones.
    """
    from pipeline.checkpoint.offline import OfflineReader
    from pipeline.checkpoint.rewriting import reshard as rewrite

    source = resolve_checkpoint(checkpoint, iteration=iteration)
    with (
        output_lock(output, "megaponder checkpoint reshard"),
        _bytes_bar("rewriting", OfflineReader(source).num_bytes) as on_bytes,
    ):
        folder = rewrite(source, output, num_files=files, on_bytes=on_bytes)
    say(f"written to {folder}")


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

    Computed in float64. The result has no optimizer state, so that training cannot resume from it: give it to
    a new run as init_from.path.
    """
    from pipeline.checkpoint.offline import OfflineReader
    from pipeline.checkpoint.rewriting import average as write_average

    if len(set(iterations)) < 2:
        raise typer.BadParameter("must be at least two different ones", param_hint="'N N...'")
    sources = [resolve_checkpoint(checkpoint, iteration=number) for number in sorted(set(iterations))]
    with (
        output_lock(output, "megaponder checkpoint average"),
        _bytes_bar("averaging", OfflineReader(sources[0]).num_weight_bytes) as on_bytes,
    ):
        folder = write_average(sources, output, on_bytes=on_bytes)
    say(f"written to {folder}")


@contextmanager
def _bytes_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many bytes are written; yield what counts further ones."""
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        bar.update(done, f"{render_bytes(done)} of {render_bytes(total)}")

    with open_bar(description, total=total) as bar:
        yield count


def _check_matches(found: Sequence[object], pattern: str) -> None:
    if not found:
        raise typer.BadParameter(
            f"must match the name of a tensor, but {pattern!r} matches none; leave it out to see all",
            param_hint="--tensors",
        )


def _report_tracker(checkpoint: Path) -> None:
    from pipeline.checkpoint.folder import iteration_of

    directory = checkpoints_at(checkpoint)
    problem = None if iteration_of(checkpoint) is not None else tracker_problem(directory)
    if problem is not None:
        say(f"tracker: {problem}", err=True)
