"""`megaponder doctor`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.text import Text

from pipeline.commands.shared import examples
from pipeline.shared.console import open_console, say
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.files import write_atomically
from pipeline.shared.tables import Table

if TYPE_CHECKING:
    from pipeline.doctor.finding import Finding

EPILOG = examples("megaponder doctor", "megaponder doctor --json doctor.json")

_STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "broken": "bold red"}

JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write the findings to this file.", show_default=False),
]


def doctor(json_file: JsonFile = None) -> None:
    """Check whether this machine has what the program needs, and say how to cure what is missing.

    Looks at Python, torch and Megatron-Core, packages and extras, GPUs and their driver, shared memory,
    disks, limits, ports, the container, SLURM and Ray. Changes nothing.

    A note is about something that not everyone needs. Exit code 1: something that is needed is broken.
    """
    from pipeline.doctor.examination import examine
    from pipeline.doctor.finding import State

    findings = list(examine())
    if json_file is not None:
        write_atomically(json_file, json.dumps([asdict(one) for one in findings], indent=2) + "\n")
    open_console().print(_table(findings))
    broken = [one.name for one in findings if one.state is State.BROKEN]
    if broken:
        say(f"broken: {', '.join(broken)}", err=True)
        raise typer.Exit(ExitCode.CRASH)


def _table(findings: "list[Finding]") -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("CHECK", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    table.add_column("FOUND")
    table.add_column("CURE")
    for one in findings:
        table.add_row(one.name, Text(one.state, style=_STYLES[one.state]), one.found, one.cure)
    return table
