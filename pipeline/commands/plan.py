"""`megaponder plan`: memory, cost and time of a run, before it starts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.shared import ConfigFile, JsonFile, Overrides, examples, set_up_logging, show_or_write
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.cost.peaks import CPU, DEVICES, Device
from pipeline.shared.console import open_console
from pipeline.shared.exit_codes import ExitCode

if TYPE_CHECKING:
    from pipeline.cost.plan import Advice, RunPlan
    from pipeline.cost.suggest import Suggestion

EPILOG = examples(
    "megaponder plan --config pipeline/recipes/pythia_2.8b_ponderlm3.yaml",
    "megaponder plan --config run.yaml --gpu a100-80g --gpus 64 --mfu 0.35 parallel.recompute=full",
    "megaponder plan --config run.yaml --mean-steps 1.8 --json plan.json",
)


Gpu = Annotated[str, typer.Option(metavar="NAME", help=f"Device of every rank: {', '.join(DEVICES)}.")]
GpuOrCpu = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"Device of every rank: {', '.join(DEVICES)}, or {CPU}: of this machine, its memory shared out.",
    ),
]
NumGpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=1,
        metavar="N",
        show_default=False,
        help="Number of devices, reached by changing parallel.data; default: as many as the layout needs.",
    ),
]
Mfu = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1.0,
        metavar="SHARE",
        show_default=False,
        help="Assumed model FLOPs utilization, for time and throughput; default: that of a roofline.",
    ),
]
Reserve = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="GIB",
        help="Device memory not available for tensors: CUDA context, libraries, fragmentation.",
    ),
]
MeanSteps = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="STEPS",
        show_default=False,
        help="Mean number of extra steps per token expected at inference, for methods that halt.",
    ),
]
VocabSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        show_default=False,
        help="Tokens of the tokenizer; default: model.vocab_size, else the tokenizer of the data.",
    ),
]


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpu: GpuOrCpu = "h100-80g",
    num_gpus: NumGpus = None,
    mfu: Mfu = None,
    reserve: Reserve = 6.0,
    mean_steps: MeanSteps = None,
    vocab_size: VocabSize = None,
    json_file: JsonFile = None,
) -> None:
    """Estimate whether a run fits its devices, what it costs and how long it takes.

    Starts no training and needs no device. Where the run does not fit, lists settings with which it does.

    Exit code 0: the run fits; 1: it does not.
    """
    set_up_logging()

    from pipeline.cost.peaks import GIB
    from pipeline.cost.plan import Assumptions, layout_advice, plan_run, plan_values
    from pipeline.cost.suggest import on_devices, suggest

    run = load_config(config, overrides or [])
    if num_gpus is not None:
        run = on_devices(run, num_gpus)
    device = _cpu_of(run) if gpu == CPU else device_of(gpu)
    size = vocab_size or vocab_size_of_run(run)
    assumptions = Assumptions(
        device=device, mfu=mfu, reserve_bytes=reserve * GIB, mean_steps=_steps(run, mean_steps)
    )
    planned = plan_run(run, size, assumptions)
    suggestions = [] if planned.fits else suggest(run, size, assumptions)
    advice = layout_advice(run, device)
    values = dict(plan_values(planned))
    values["suggestions"] = [list(suggestion.overrides) for suggestion in suggestions]
    values["advice"] = [each.override for each in advice]
    show_or_write(lambda: _show(planned, suggestions, advice), values, json_file)
    raise typer.Exit(ExitCode.DONE if planned.fits else ExitCode.CRASH)


def _cpu_of(run: RunConfig) -> Device:
    """Return a rank's share of this machine, whose memory the ranks of a node share."""
    import psutil

    ranks_per_node = -(-run.parallel.world_size // run.submit.nodes)
    return Device(name=CPU, memory_bytes=psutil.virtual_memory().total // ranks_per_node, peak=None)


def _show(planned: "RunPlan", suggestions: "Sequence[Suggestion]", advice: "Sequence[Advice]" = ()) -> None:
    from pipeline.cost.table import render_memory, render_plan, render_suggestions

    console = open_console()
    console.print(render_memory(planned))
    console.print(render_plan(planned))
    if suggestions:
        console.print(render_suggestions(suggestions))
    elif not planned.fits:
        console.print("no layout of this many devices fits; plan with more (--gpus)")
    for each in advice:
        console.print(f"better {each.override}: {each.reason}")


def _steps(run: RunConfig, mean_steps: float | None) -> float | None:
    most = run.ponder.num_latent_thoughts
    if mean_steps is not None and mean_steps > most:
        raise typer.BadParameter(
            f"must be at most ponder.num_latent_thoughts ({most}), but is {mean_steps:g}",
            param_hint="--mean-steps",
        )
    return mean_steps


def device_of(name: str) -> Device:
    """Return the device that --gpu names."""
    if name not in DEVICES:
        raise typer.BadParameter(f"must be one of {', '.join(DEVICES)}, but is {name}", param_hint="--gpu")
    return DEVICES[name]


def vocab_size_of_run(run: RunConfig) -> int:
    """Return the number of ids of the run's tokenizer.

    Raises:
        ConfigError: it is neither configured nor known from the data.
    """
    return run.model.vocab_size or _vocab_size_of_data(run)


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
                    rule="must be known, as it sets the size of embedding and logits",
                    value="neither given nor known from the data",
                    cure="give --vocab-size (50277 for Pythia's tokenizer), or prepare the data first",
                )
            ]
        ) from error
