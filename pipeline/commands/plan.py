"""`megaponder plan`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import ConfigFile, Overrides, examples, set_up_logging
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.shared.console import table_console
from pipeline.shared.exit_codes import ExitCode

EPILOG = examples(
    "megaponder plan --config pipeline/recipes/pythia_2.8b_ponderlm3.yaml",
    "megaponder plan --config run.yaml --gpu a100-80g --gpus 64 --mfu 0.35 parallel.recompute=full",
    "megaponder plan --config run.yaml --mean-steps 1.8 --json plan.json",
)


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="Device of every rank.")] = "h100-80g",
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            show_default=False,
            help="Spread the run over so many by its data axis; default: as many as the layout asks for.",
        ),
    ] = None,
    mfu: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, metavar="SHARE", help="Model FLOPs utilisation to count time with."),
    ] = 0.4,
    reserve: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="GIB", help="Memory left for the CUDA context, libraries and fragments."
        ),
    ] = 6.0,
    mean_steps: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="STEPS",
            show_default=False,
            help="Extra steps a token is expected to take at inference.",
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            show_default=False,
            help="Ids of the tokenizer; default: model.vocab_size, or what the data say.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", show_default=False, help="Write the plan here too."),
    ] = None,
) -> None:
    """Say before any launch whether a run fits its devices, what it costs and how long it takes.

    Starts nothing and needs no device. Exit code 1: it does not fit.
    """
    set_up_logging()

    from pipeline.cost.peaks import DEVICES, GIB
    from pipeline.cost.plan import Assumptions, plan_run, plan_values
    from pipeline.cost.suggest import on_devices, suggest
    from pipeline.cost.table import render_memory, render_plan, render_suggestions

    if gpu not in DEVICES:
        raise typer.BadParameter(f"must be one of {', '.join(DEVICES)}, but is {gpu}", param_hint="--gpu")
    run = load_config(config, overrides or [])
    if gpus is not None:
        run = on_devices(run, gpus)
    size = vocab_size or run.model.vocab_size or _vocab_size_of_data(run)
    assumptions = Assumptions(
        device=DEVICES[gpu], mfu=mfu, reserve_bytes=reserve * GIB, mean_steps=_steps(run, mean_steps)
    )
    planned = plan_run(run, size, assumptions)
    console = table_console()
    console.print(render_memory(planned))
    console.print(render_plan(planned))
    suggestions = [] if planned.fits else suggest(run, size, assumptions)
    if suggestions:
        console.print(render_suggestions(suggestions))
    elif not planned.fits:
        console.print(f"no layout of {run.parallel.world_size} {gpu} fits; plan with more (--gpus)")
    if json_file is not None:
        values = dict(plan_values(planned))
        values["suggestions"] = [list(suggestion.overrides) for suggestion in suggestions]
        json_file.write_text(json.dumps(values, indent=2) + "\n", encoding="ascii")
    raise typer.Exit(ExitCode.DONE if planned.fits else ExitCode.CRASH)


def _steps(run: RunConfig, mean_steps: float | None) -> float | None:
    most = run.ponder.num_latent_thoughts
    if mean_steps is not None and mean_steps > most:
        raise typer.BadParameter(
            f"must be at most ponder.num_latent_thoughts ({most}), but is {mean_steps:g}",
            param_hint="--mean-steps",
        )
    return mean_steps


def _vocab_size_of_data(run: RunConfig) -> int:
    from data_prep.manifest import load_manifest
    from pipeline.shared.errors import DataError

    try:
        return load_manifest(run.data.manifest_folder).header.tokenizer.vocab_size
    except (DataError, ConfigError) as error:
        raise ConfigError(
            [
                ConfigProblem(
                    path="model.vocab_size",
                    rule="must be known to count embedding and logits",
                    value="not given, and the data do not say it",
                    cure="give --vocab-size (50277 for Pythia's tokenizer), or prepare the data first",
                )
            ]
        ) from error
