"""`megaponder report`: the report of a run as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from pipeline.commands.shared import examples
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.shared.console import open_console, say

EPILOG = examples("megaponder report runs/demo", "megaponder report runs/demo --output demo.html")


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a trained and evaluated run, or of its checkpoints."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="HTML file to write; default: RUN/report.html.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the report of a run: a self-contained HTML file with curves, results and a sample.

    Run `megaponder eval` first: the report shows its held-out results. If `megaponder generate` has saved a
    text in the run's folder, the report shows it colored by thinking steps.
    """
    from data_prep.manifest import load_manifest
    from pipeline.checkpoint.folder import CONFIG_NAME
    from pipeline.checkpoint.places import run_at
    from pipeline.checkpoint.stored_config import stored_run
    from pipeline.cost.account import flops_account, mean_step
    from pipeline.report.collect import collect_report
    from pipeline.report.facts import further_commands, run_facts
    from pipeline.report.render import write_report
    from pipeline.report.table import render_results

    run = run_at(run)
    config_file = run / CONFIG_NAME
    stored = stored_run(run)
    stored.check_data_exists()
    config = stored.config
    manifest = load_manifest(config.data.manifest_folder)
    flops = flops_account(config, manifest.header.tokenizer.vocab_size)
    try:
        data = collect_report(
            run,
            checkpoints=config.checkpoint_directory,
            name=config.name,
            flops=flops,
            flops_per_token_train=mean_step(config, flops).flops.model,
            facts=run_facts(run, config, manifest),
            commands=further_commands(config, config_file),
        )
    except FileNotFoundError as error:
        cure = "run `megaponder eval` on its checkpoints first"
        raise ConfigError([_missing(run, Path(error.filename).name, cure)]) from error
    path = output or run / "report.html"
    write_report(data, path)
    console = open_console()
    console.print(render_results(data))
    for command in data.commands:
        console.print(Text(f"{command.purpose}:", style="dim"))
        say(f"  {command.line}")
    say(f"report: {path.resolve()}")


def _missing(run: Path, name: str, cure: str) -> ConfigProblem:
    return ConfigProblem(
        path=str(run),
        rule="must be the output folder of a trained and evaluated run",
        value=f"a folder without {name}",
        cure=cure,
    )
