"""Compare the production model with a folder of golden vectors (`python -m tests.golden`)."""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Column, Table

from megatron_ext.ponder.config import Method
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.ranks.launch import run_ranks
from pipeline.shared.exit_codes import ExitCode
from tests.support.golden.case import GoldenCase, read_cases
from tests.support.golden.compare import CaseResult, Status

Kind = Literal["forward", "decode", "all"]
QUANTITIES = ("logits", "loss", "thoughts", "hidden", "halting", "gradients", "tokens", "rows")
TABLE_WIDTH = 165
STYLES = {
    Status.PASSED: "green",
    Status.FAILED: "bold red",
    Status.NOT_APPLICABLE: "dim",
    Status.NOT_SUPPORTED: "yellow",
}


def run_golden(
    folder: Path,
    *,
    kind: Kind = "all",
    method: Method | None = None,
    tensor_parallel: int = 1,
    context_parallel: int = 1,
    pipeline_parallel: int = 1,
    json_file: Path | None = None,
    console: Console | None = None,
) -> ExitCode:
    """Compute every case of a folder and print its worst errors over their tolerances.

    Args:
        folder: cases as JSON and safetensors files.
        kind: which cases.
        method: only cases of this method; None takes all.
        tensor_parallel: number of tensor-parallel ranks.
        context_parallel: number of ranks that share each row.
        pipeline_parallel: number of pipeline stages.
        json_file: also write the results to this file.
        console: for the table.
    Returns:
        DONE if every case that ran passed; CRASH if one failed or none ran; NOT_SUPPORTED if cases were
        skipped because this version cannot compute them.
    Raises:
        ConfigError: the layout or the folder is invalid.
    """
    layout = {
        "--tensor-parallel": tensor_parallel,
        "--context-parallel": context_parallel,
        "--pipeline-parallel": pipeline_parallel,
    }
    cases = _chosen(folder, kind, method, layout)
    results = _compute(folder, cases, layout) if cases else []
    _print(results, console or _wide_console())
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    return _exit_code(results)


def _chosen(folder: Path, kind: Kind, method: Method | None, layout: Mapping[str, int]) -> list[GoldenCase]:
    problems = [
        ConfigProblem(path=flag, rule="must be at least 1", value=str(size), cure="try 1 or 2")
        for flag, size in layout.items()
        if size < 1
    ]
    try:
        cases = read_cases(folder)
    except ValueError as error:
        problems.append(ConfigProblem(path="DIR", rule=str(error), value=str(folder)))
    if problems:
        raise ConfigError(problems)
    return [case for case in cases if kind in ("all", case.kind) and method in (None, case.method)]


def _compute(folder: Path, cases: Sequence[GoldenCase], layout: Mapping[str, int]) -> list[CaseResult]:
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "results.json"
        code = run_ranks(
            [
                "-W",
                "ignore",
                "-m",
                "tests.support.golden.worker",
                str(folder),
                "--output",
                str(output),
                *(word for flag, size in layout.items() for word in (flag, str(size))),
                "--names",
                *(case.name for case in cases),
            ],
            num_ranks=math.prod(layout.values()),
        )
        if code != 0:
            raise RuntimeError(f"the ranks that compute the golden cases exited with code {code}")
        rows = json.loads(output.read_text())
    return [CaseResult(**{**row, "status": Status(row["status"])}) for row in rows]


def _wide_console() -> Console:
    """Return a console that is wide enough for the table, even in a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)


def _print(results: Sequence[CaseResult], console: Console) -> None:
    columns = [Column(name, no_wrap=True) for name in ("case", *QUANTITIES)]
    table = Table(*columns, "status", title="largest error / tolerance (at most 1 passes)")
    for result in results:
        cells = [_cell(result, quantity) for quantity in QUANTITIES]
        status = f"[{STYLES[result.status]}]{result.status}[/]"
        table.add_row(result.name, *cells, f"{status}: {result.reason}" if result.reason else status)
    console.print(table)
    counts = Counter(result.status for result in results)
    console.print(", ".join(f"{counts[status]} {status}" for status in Status))


def _cell(result: CaseResult, quantity: str) -> str:
    values = [value for name, value in result.worst.items() if name.split(" ")[0] == quantity]
    return f"{max(values):.3f}" if values else "-"


def _exit_code(results: Sequence[CaseResult]) -> ExitCode:
    statuses = Counter(result.status for result in results)
    if statuses[Status.FAILED] or not statuses[Status.PASSED]:
        return ExitCode.CRASH
    return ExitCode.NOT_SUPPORTED if statuses[Status.NOT_SUPPORTED] else ExitCode.DONE
