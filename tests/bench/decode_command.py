"""`python -m tests.bench decode`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import ConfigFile, Overrides, examples, set_up_logging
from pipeline.shared.console import table_console
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.progress import open_bar

EPILOG = examples(
    "python -m tests.bench decode --config pipeline/recipes/ponderlm3_70m.yaml model.vocab_size=2048 "
    "training.precision=fp32 --json decode.json",
    "python -m tests.bench decode --config run.yaml --batch-size 32 training.precision=bf16",
)


def decode(
    config: ConfigFile,
    overrides: Overrides = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences.")] = 8,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens before the timed ones.")
    ] = 32,
    new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Timed tokens of each sequence.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed rounds; medians are shown.")] = 5,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of the CPU.")] = 1,
    minimum_speedup: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="RATIO",
            help="Exit with 1 if one step per token is not this many times faster than no pruning.",
            show_default=False,
        ),
    ] = None,
    maximum_ratio: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="RATIO",
            help="Exit with 1 if vanilla takes more than this many times the time of transformers.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the figures here too.", show_default=False),
    ] = None,
) -> None:
    """Time cached decoding of a PonderLM-3 by the steps its tokens take, on one rank and random tokens.

    The router is biased so that every token takes 0, 1, .. K steps, beside the same model without pruning,
    the same sizes without thoughts, and, for GPT-NeoX where transformers is installed, its own decoding. All
    take turns, after a round that is not timed; medians over the rounds are shown, FLOPs saved beside time
    saved. Prompts are read before the clock starts. Reads no data.
    """
    set_up_logging()

    import torch

    from megatron_ext.ponder.config import Method
    from pipeline.config.load import load_config
    from pipeline.shared.files import write_atomically
    from tests.bench.decode import DecodeSizes, time_decoding
    from tests.bench.decode_figures import decode_figures, figures_json, render_figures
    from tests.bench.decode_transformers import transformers_ways
    from tests.bench.machine import machine_name

    layout = ("parallel.tensor=1", "parallel.pipeline=1", "parallel.data=1")
    run = load_config(config, [*(overrides or []), *layout])
    if run.ponder.method is not Method.PONDERLM3:
        raise typer.BadParameter(
            f"must be a run of ponderlm3, but is one of {run.ponder.method}", param_hint="--config"
        )
    torch.set_num_threads(threads)
    sizes = DecodeSizes(batch_size=batch_size, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    with open_bar("rounds", total=repeats + 1) as bar:
        times = time_decoding(
            run,
            sizes,
            repeats=repeats,
            further=lambda: transformers_ways(run, sizes),
            advance=bar.advance,
        )
    figures = decode_figures(times)
    what = f"{batch_size} sequences, {prompt_tokens} + {new_tokens} tokens, {run.training.precision}"
    machine = f"{machine_name()}, {threads} thread(s)"
    console = table_console()
    for table in render_figures(figures, title=f"{run.name}: {what}; {machine}"):
        console.print(table)
    if json_file is not None:
        settings = {"run": run.name, "what": what, "machine": machine, "repeats": repeats}
        write_atomically(json_file, figures_json(figures, settings))
        typer.echo(f"written to {json_file}")
    too_slow = minimum_speedup is not None and (figures.speedup_at_one_step or 0.0) < minimum_speedup
    over = maximum_ratio is not None and (figures.ratio_to_transformers or 0.0) > maximum_ratio
    raise typer.Exit(ExitCode.CRASH if too_slow or over else ExitCode.DONE)
