"""`megaponder doctor`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.text import Text

from pipeline.commands.shared import JsonFile, examples, show_or_write
from pipeline.shared.console import open_console, say
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.tables import Table

if TYPE_CHECKING:
    from pipeline.doctor.finding import Finding

EPILOG = examples("megaponder doctor", "megaponder doctor --json doctor.json")

_STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "broken": "bold red"}


def doctor(json_file: JsonFile = None) -> None:
    """Check whether this machine has what the program needs, and say how to cure what is missing.

    Looks at Python, torch and Megatron-Core, packages and extras, GPUs and their driver, shared memory,
    disks, limits, ports, the container, SLURM and Ray. Changes nothing.

    A note is about something that not everyone needs. Exit code 1: something that is needed is broken.
    """
    from pipeline.doctor.examination import examine
    from pipeline.doctor.finding import State

    findings = list(examine())
    show_or_write(
        lambda: open_console().print(_table(findings)), [asdict(one) for one in findings], json_file
    )
    broken = [one.name for one in findings if one.state is State.BROKEN]
    if broken:
        say(f"broken: {', '.join(broken)}", err=True)
        raise typer.Exit(ExitCode.CRASH)


def _table(findings: "list[Finding]") -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("CHECK", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    table.add_column("FOUND, AND CURE")
    for one in findings:
        cure = f"\n-> {one.cure}" if one.cure else ""
        table.add_row(one.name, Text(one.state, style=_STYLES[one.state]), f"{one.found}{cure}")
    return table
