"""Train every method on the same real text: continued from one base, and from scratch."""

import logging
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import examples, set_up_logging
from pipeline.shared.console import open_console
from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically
from scripts.commands import megaponder, run_script
from scripts.ladder.corpus import find_documentation, write_pages
from scripts.ladder.limits_table import render_limits, render_limits_markdown
from scripts.ladder.means import flops_of, milliseconds_of
from scripts.ladder.measure import compare_words, steps_words
from scripts.ladder.plan import Ladder, load_ladder
from scripts.ladder.plots import (
    render_halting_png,
    render_quartiles_png,
    render_steps_png,
    render_training_png,
)
from scripts.ladder.points import RowPoints, collect_points, points_of
from scripts.ladder.precision import precision_settings
from scripts.ladder.results import RunResult, collect, read_part, render_markdown, render_table
from scripts.ladder.run import Runner
from scripts.ladder.times import time_points

HERE = Path(__file__).parent
logger = logging.getLogger(__name__)

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


class PartName(StrEnum):
    """A part of the ladder."""

    CONTINUED = "continued"
    SCRATCH = "scratch"


Folder = Annotated[
    Path,
    typer.Option("--folder", metavar="DIR", help="Holds the text, its tokens and a folder for each run."),
]
LadderFile = Annotated[
    Path, typer.Option("--ladder", metavar="FILE", help="The rows; see scripts/ladder/s.yaml.")
]
DEFAULT_FOLDER = Path("runs/ladder")
DEFAULT_LADDER = HERE / "s.yaml"


@app.command(
    epilog=examples(
        "python -m scripts.ladder prepare",
        "python -m scripts.ladder prepare --documentation linux/Documentation --vocab-size 8192",
    )
)
def prepare(
    folder: Folder = DEFAULT_FOLDER,
    documentation: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of .rst and .txt pages; default: those of Debian's linux-doc-6.1, downloaded "
            "unless installed.",
            show_default=False,
        ),
    ] = None,
    vocab_size: Annotated[int, typer.Option(min=259, metavar="N", help="Pieces of the tokenizer.")] = 2048,
) -> None:
    """Get the text, train a tokenizer on it, and tokenize it; whole documents are held out."""
    set_up_logging()
    pages = folder / "documentation.jsonl"
    source = find_documentation(documentation, download_to=folder / "documentation")
    logger.info("%d distinct pages in %s", write_pages(source, pages), source)
    tokenizer = folder / "tokenizer.model"
    megaponder("tokenizer", "train", str(pages), "--vocab-size", str(vocab_size), "--output", str(tokenizer))
    megaponder("data", "prepare", str(pages), "--tokenizer", str(tokenizer), "--output", str(folder / "data"))


@app.command(
    epilog=examples(
        "python -m scripts.ladder run",
        "python -m scripts.ladder run --part continued --processes 12 --hours 0.15",
    )
)
def run(
    folder: Folder = DEFAULT_FOLDER,
    ladder: LadderFile = DEFAULT_LADDER,
    part: Annotated[
        list[PartName] | None, typer.Option(help="Which part; default: both.", show_default=False)
    ] = None,
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="Trainings at the same time.")] = 1,
    hours: Annotated[float, typer.Option(min=0.01, metavar="H", help="Stop, and save, after so long.")] = 6.0,
) -> None:
    """Run what has not run yet; a training that was stopped resumes from its newest checkpoint.

    Exit code 75 where time ran out: the same command resumes.
    """
    set_up_logging()
    if not (folder / "data").is_dir():
        raise DataError(
            f"{folder / 'data'} must hold prepared text; run `python -m scripts.ladder prepare` first"
        )
    wanted = load_ladder(ladder)
    recipe = (ladder.parent / wanted.recipe).resolve()
    runner = Runner(
        ladder=wanted,
        recipe=recipe,
        folder=_runs_of(wanted, ladder, folder).resolve(),
        data=(folder / "data").resolve(),
        deadline=time.monotonic() + 3600 * hours,
        num_processes=processes,
        settings=precision_settings(recipe),
    )
    runner.run_all([name.value for name in part] if part else wanted.part_names())


@app.command(epilog=examples("python -m scripts.ladder measure --part continued"))
def measure(
    folder: Folder = DEFAULT_FOLDER,
    ladder: LadderFile = DEFAULT_LADDER,
    part: Annotated[
        list[PartName] | None, typer.Option(help="Which part; default: both.", show_default=False)
    ] = None,
) -> None:
    """Evaluate every reported run within budgets of steps, with `megaponder compare`; time one of each row.

    The steps of easy and hard tokens are measured within one budget, with `megaponder eval`. What has been
    measured is not measured again.
    """
    set_up_logging()
    wanted = load_ladder(ladder)
    for part_name in [name.value for name in part] if part else wanted.part_names():
        for runs in read_part(_runs_of(wanted, ladder, folder), wanted, part_name).values():
            for number, run in enumerate(runs.values()):
                _measure(run, timing=number == 0)


def _measure(run: RunResult, *, timing: bool) -> None:
    for words_of in (compare_words, steps_words):
        if words := words_of(run.folder):
            megaponder(*words)
    points = points_of(run)
    if timing and not all(point.speeds for point in points):
        time_points(run.folder, points)


@app.command(
    epilog=examples(
        "python -m scripts.ladder results", "python -m scripts.ladder results --output table.md --plots plots"
    )
)
def results(
    folder: Folder = DEFAULT_FOLDER,
    ladder: LadderFile = DEFAULT_LADDER,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write the tables as Markdown.", show_default=False
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write plots of each part here; most need `measure`.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show mean and standard deviation over seeds of every row that has run, and its loss under limits."""
    wanted = load_ladder(ladder)
    runs = _runs_of(wanted, ladder, folder)
    rows = collect(runs, wanted)
    parts = {name: collect_points(runs, wanted, name) for name in wanted.part_names()}
    parts = {name: points for name, points in parts.items() if points}
    console = open_console()
    console.print(render_table(rows))
    for points in parts.values():
        console.print(render_limits(points))
    if output is not None:
        tables = [render_markdown(rows), *map(render_limits_markdown, parts.values())]
        write_atomically(output, "\n".join(tables))
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        for part_name, points in parts.items():
            _write_plots(plots, part_name, points)


def _runs_of(ladder: Ladder, file: Path, folder: Path) -> Path:
    """Return the folder of a ladder's runs."""
    return folder / (ladder.runs or file.stem)


def _write_plots(folder: Path, part: str, rows: list[RowPoints]) -> None:
    flops, time = "inference FLOPs per token", "ms per token, one text alone"
    plots = {
        "training": render_training_png(rows),
        "flops": render_steps_png(rows, flops_of, flops),
        "time": render_steps_png(rows, milliseconds_of, time),
        "halting_flops": render_halting_png(rows, flops_of, flops),
        "halting_time": render_halting_png(rows, milliseconds_of, time),
        "steps": render_quartiles_png(rows),
    }
    for name, content in plots.items():
        if content is None:
            logger.info("%s_%s.png: not measured", part, name)
        else:
            write_atomically(folder / f"{part}_{name}.png", content)


if __name__ == "__main__":
    run_script(app)
