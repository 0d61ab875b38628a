"""`megaponder rehearse`: the training step of one rank of any layout, without its device."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.plan import Gpu, Reserve, VocabSize, device_of, vocab_size_of_run
from pipeline.commands.shared import ConfigFile, JsonFile, Overrides, examples, set_up_logging, show_or_write
from pipeline.commands.spellings import STANDARD_OUTPUT
from pipeline.config.load import load_config
from pipeline.shared.errors import UserError
from pipeline.shared.exit_codes import ExitCode

if TYPE_CHECKING:
    from pipeline.rehearsal.rehearse import Rehearsal

EPILOG = examples(
    "megaponder rehearse --config pipeline/recipes/llama_410m_ponderlm3.yaml",
    "megaponder rehearse --config run.yaml --gpus 1024 --rank 37 parallel.tensor=8 parallel.pipeline=4",
    "megaponder rehearse --config run.yaml --all-distinct --json rehearsal.json",
)

NumGpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=1,
        metavar="N",
        show_default=False,
        help="Ranks of the job, reached by changing parallel.data; default: as many as the layout needs.",
    ),
]
Rank = Annotated[int | None, typer.Option(min=0, metavar="R", help="The rank to rehearse; default: 0.")]
AllDistinct = Annotated[
    bool, typer.Option("--all-distinct", help="Rehearse the first and the last rank of every pipeline stage.")
]
Documents = Annotated[
    int, typer.Option(min=1, metavar="N", help="Documents of each row of the made-up data.")
]


def rehearse(
    config: ConfigFile,
    overrides: Overrides = None,
    num_gpus: NumGpus = None,
    rank: Rank = None,
    all_distinct: AllDistinct = False,
    gpu: Gpu = "h100-80g",
    reserve: Reserve = 6.0,
    documents: Documents = 1,
    vocab_size: VocabSize = None,
    json_file: JsonFile = None,
) -> None:
    """Execute the real training step of one rank in this process, without a GPU and without the other ranks.

    The code is that of a training; tensors have shapes but no values. Reports memory beside the plan,
    messages, operations, and where the host would wait for the device.

    Exit code 0: it would run; 1: tensors of two devices meet, or the peak exceeds the device.
    """
    set_up_logging()

    from pipeline.cost.suggest import on_devices

    device = device_of(gpu)
    run = load_config(config, overrides or [])
    if num_gpus is not None:
        run = on_devices(run, num_gpus)
    if rank is not None and all_distinct:
        raise typer.BadParameter(
            "must not be given with --all-distinct, which chooses ranks", param_hint="--rank"
        )
    if rank is not None and rank >= run.parallel.world_size:
        raise UserError(
            f"--rank must be less than the {run.parallel.world_size} ranks of the layout, but is {rank}; "
            "give another one, or more ranks (--gpus)"
        )
    size = vocab_size or vocab_size_of_run(run)

    from pipeline.cost.peaks import GIB
    from pipeline.rehearsal.rehearse import distinct_ranks, rehearse_rank
    from pipeline.rehearsal.table import rehearsal_values, render_rehearsal
    from pipeline.shared.console import open_console

    ranks = distinct_ranks(run) if all_distinct else (rank or 0,)
    available = device.memory_bytes - reserve * GIB
    console = open_console(quiet=json_file == Path(STANDARD_OUTPUT))
    results = []
    for each in ranks:
        results.append(rehearse_rank(run, size, each, documents_per_row=documents))
        console.print(render_rehearsal(results[-1], run.name, device, available))
    values = {"ranks": [rehearsal_values(result, device, available) for result in results]}
    # The tables were shown one by one.
    show_or_write(lambda: None, values, json_file)
    would_run = all(_would_run(result, available) for result in results)
    raise typer.Exit(ExitCode.DONE if would_run else ExitCode.CRASH)


def _would_run(result: "Rehearsal", available: float) -> bool:
    return not result.mixed and result.peak_bytes <= available
