"""Run `python -m scripts.gpu_check`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import examples
from pipeline.shared.console import open_console, say
from pipeline.shared.tables import Table
from scripts.commands import run_script
from scripts.gpu_check.checks import BY_NAME, CHECKS, TOTAL_SECONDS
from scripts.gpu_check.outcome import Outcome, Status
from scripts.gpu_check.running import run_checks

RESULTS_NAME = "results.jsonl"
EPILOG = examples(
    "python -m scripts.gpu_check",
    "python -m scripts.gpu_check --only golden --only step --output runs/h200",
    "MEGAPONDER_DEVICE=cpu python -m scripts.gpu_check --only machine",
)


def gpu_check(
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for results, and for the log of each check.")
    ] = Path("runs/gpu_check"),
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Of {', '.join(BY_NAME)}; default: all.", show_default=False),
    ] = None,
    is_tiny: Annotated[
        bool, typer.Option("--tiny", help="Sizes for a CPU, which test the checks; without a GPU always.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=1, metavar="N", help="Limit of all checks together.")
    ] = TOTAL_SECONDS,
) -> None:
    """Check in minutes what a machine with one GPU can show: numbers, speed, memory, faults.

    Each check is a process with a limit of time. Its result is printed as one line of JSON and added to
    results.jsonl in the output folder; a table comes last.

    Exit code 0: all have passed; 1: one has not.
    """
    unknown = sorted(set(only or ()) - set(BY_NAME))
    if unknown:
        raise typer.BadParameter(f"must be of {', '.join(BY_NAME)}, but is {unknown[0]}", param_hint="--only")
    output.mkdir(parents=True, exist_ok=True)
    chosen = [check for check in CHECKS if only is None or check.name in only]
    outcomes = []
    with (output / RESULTS_NAME).open("a", encoding="utf-8") as results:
        for outcome in run_checks(chosen, output.resolve(), is_tiny=is_tiny, total_seconds=seconds):
            outcomes.append(outcome)
            results.write(outcome.as_line() + "\n")
            results.flush()
            say(outcome.as_line())
    open_console().print(_table(outcomes))
    raise typer.Exit(0 if all(outcome.status is Status.PASSED for outcome in outcomes) else 1)


def _table(outcomes: list[Outcome]) -> Table:
    devices = sorted({outcome.device for outcome in outcomes if outcome.device})
    sizes = ", tiny sizes" if any(outcome.is_tiny for outcome in outcomes) else ""
    table = Table(title=f"checks on {' and '.join(devices) or 'no device'}{sizes}")
    for column in ("check", "status", "seconds"):
        table.add_column(column, no_wrap=True)
    table.add_column("found")
    for outcome in outcomes:
        found = "; ".join([outcome.summary, *outcome.findings])
        table.add_row(outcome.name, outcome.status, f"{outcome.seconds:.0f}", found)
    return table


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=EPILOG)(gpu_check)
    run_script(app)
