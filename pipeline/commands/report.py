"""`megaponder report`: the report of one run, or of several that are compared, as one HTML file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pipeline.commands.shared import examples
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.shared.console import open_console, say

if TYPE_CHECKING:
    from pipeline.report.data import ReportData

REPORT_FILE = "report.html"
# In the folder of the first run, beside its own report.
COMPARISON_FILE = "comparison.html"

EPILOG = examples(
    "megaponder report runs/demo",
    "megaponder report runs/demo --output demo.html",
    "megaponder report runs/vanilla runs/ponderlm3",
)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Folders of trained and evaluated runs, or of their checkpoints."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="HTML file to write; default: report.html in the run, for several runs comparison.html in "
            "the first.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the report of a run: a self-contained HTML file with curves, results and a sample.

    It begins with what the steps are worth: held-out loss, FLOPs and time with all of them, at the threshold,
    and without any. Several runs are compared: by loss and cost, and by their curves over training tokens.

    Run `megaponder eval` first: the report shows its held-out results, and those of `eval --tasks`. Texts
    that `megaponder generate --output` has saved as sample*.json in the run are shown colored by thinking
    steps.
    """
    from pipeline.checkpoint.places import run_at

    folders = list(dict.fromkeys(run_at(run) for run in runs))
    found = [_collected(folder) for folder in folders]
    path = output or folders[0] / (REPORT_FILE if len(folders) == 1 else COMPARISON_FILE)
    _write(found, folders, path)
    _show(found)
    say(f"report: {path.resolve()}")


def _collected(run: Path) -> "ReportData":
    """Return the content of the report of a run."""
    from data_prep.manifest import load_manifest
    from pipeline.checkpoint.folder import CONFIG_NAME
    from pipeline.checkpoint.stored_config import stored_run
    from pipeline.cost.account import flops_account, mean_step
    from pipeline.report.collect import collect_report
    from pipeline.report.facts import further_commands, run_facts

    stored = stored_run(run)
    stored.check_data_exists()
    config = stored.config
    manifest = load_manifest(config.data.manifest_folder)
    flops = flops_account(config, manifest.header.tokenizer.vocab_size)
    try:
        return collect_report(
            run,
            checkpoints=config.checkpoint_directory,
            name=config.name,
            flops=flops,
            flops_per_token_train=mean_step(config, flops).flops.model,
            facts=run_facts(run, config, manifest),
            commands=further_commands(config, run / CONFIG_NAME),
        )
    except FileNotFoundError as error:
        raise ConfigError([_missing(run, Path(error.filename).name)]) from error


def _write(found: "list[ReportData]", folders: list[Path], path: Path) -> None:
    from datetime import UTC, datetime
    from importlib.metadata import version

    from pipeline.report.render import render_report, write_report
    from pipeline.report.runs import labels_of

    written_by = f"megaponder {version('megaponder')}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    write_report(render_report(found, labels_of(found, folders), written_by=written_by), path)


def _show(found: "list[ReportData]") -> None:
    from pipeline.report.table import render_results

    console = open_console()
    for data in found:
        console.print(render_results(data))
    # Those of several runs would bury their results.
    for command in found[0].commands if len(found) == 1 else ():
        console.print(Text(f"{command.purpose}:", style="dim"))
        say(f"  {command.line}")


def _missing(run: Path, name: str) -> ConfigProblem:
    return ConfigProblem(
        path=str(run),
        rule="must be the output folder of a trained and evaluated run",
        value=f"a folder without {name}",
        cure="run `megaponder eval` on its checkpoints first",
    )
