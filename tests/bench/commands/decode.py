"""`python -m tests.bench decode`: cached decoding by the steps that tokens take."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import ConfigFile, Overrides, examples, set_up_logging
from pipeline.config.load import load_config
from pipeline.shared.console import open_console
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.progress import open_bar

EPILOG = examples(
    "python -m tests.bench decode --config pipeline/recipes/ponderlm3_70m.yaml model.vocab_size=2048 "
    "training.precision=fp32 --json decode.json",
    "python -m tests.bench decode --config run.yaml --batch-size 32 training.precision=bf16",
    "python -m tests.bench decode --config run.yaml --other ../another-checkout",
)


def decode(
    config: ConfigFile,
    overrides: Overrides = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            min=1, metavar="N", help="Sequences; may be repeated; default: 8, then 1.", show_default=False
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens before the timed ones.")
    ] = 16,
    new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Timed tokens of each sequence.")] = 12,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Also time N steps for every token; may be repeated; default: 1.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Timed rounds at most; medians are shown.")
    ] = 5,
    seconds: Annotated[
        float,
        typer.Option(min=0.0, metavar="N", help="No round begins that would end later."),
    ] = 240.0,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of the CPU.")] = 1,
    other: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            metavar="FOLDER",
            help="Another checkout of this program, whose decoder takes its turns.",
            show_default=False,
        ),
    ] = None,
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
        typer.Option("--json", metavar="FILE", help="Also write the figures here.", show_default=False),
    ] = None,
) -> None:
    """Time cached decoding of a PonderLM-3 by the steps its tokens take, on one rank and random tokens.

    The router is biased so that every token takes the same number of steps, or that given shares of the
    tokens take 0, 1, .. steps; these also token by token, all texts waiting for the slowest. Baselines are
    the same model without pruning, the same sizes without thoughts, and for GPT-NeoX, if transformers is
    installed, its decoding. All take turns, after one untimed round. The tables show medians over the rounds,
    calls of the layers per token, rows per call, and the time saved next to what FLOPs and what calls
    promise. With one thread of a CPU, ratios are of CPU seconds. Prompts are read before the clock starts.
    Reads no data.
    """
    set_up_logging()

    import torch

    from megatron_ext.device import device
    from megatron_ext.ponder.config import Method
    from pipeline.shared.files import write_atomically
    from tests.bench.decode import DecodeSizes, time_decoding
    from tests.bench.decode_figures import decode_figures, figures_json, render_figures
    from tests.bench.decode_other import other_ways
    from tests.bench.decode_transformers import transformers_ways
    from tests.bench.machine import machine_name

    layout = ("parallel.tensor=1", "parallel.pipeline=1", "parallel.data=1")
    run = load_config(config, [*(overrides or []), *layout])
    if run.ponder.method is not Method.PONDERLM3:
        raise typer.BadParameter(
            f"must be a run of ponderlm3, but is a run of {run.ponder.method}", param_hint="--config"
        )
    torch.set_num_threads(threads)
    sizes = [
        DecodeSizes(batch_size=size, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
        for size in dict.fromkeys(batch_size or (8, 1))
    ]
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        others = [] if other is None else stack.enter_context(other_ways(other, run, sizes, threads=threads))
        bar = stack.enter_context(open_bar("decoding", total=1))
        times = time_decoding(
            run,
            sizes,
            repeats=repeats,
            steps=steps or (1,),
            most_seconds=seconds,
            further=lambda of_sizes: [*transformers_ways(run, of_sizes), *others],
            watch=lambda share: bar.update(share, f"{share:.0%}"),
        )
    by_cpu = threads == 1 and device().type == "cpu"
    figures = decode_figures(times, by_cpu=by_cpu)
    loads = (load, os.getloadavg()[0])
    machine = f"{machine_name()}, {threads} thread(s), load {loads[0]:.1f} to {loads[1]:.1f}"
    what = f"{prompt_tokens} + {new_tokens} tokens, {run.training.precision}, {len(times[0].rounds)} round(s)"
    console = open_console()
    for one in figures:
        title = f"{run.name}: {one.batch_size} sequences, {what}; {machine}"
        for table in render_figures(one, title=title):
            console.print(table)
    if json_file is not None:
        settings = {"run": run.name, "what": what, "machine": machine}
        write_atomically(json_file, figures_json(figures, settings))
        typer.echo(f"written to {json_file}")
    first = figures[0]
    too_slow = minimum_speedup is not None and (first.speedup_at_one_step or 0.0) < minimum_speedup
    over = maximum_ratio is not None and (first.ratio_to_transformers or 0.0) > maximum_ratio
    raise typer.Exit(ExitCode.CRASH if too_slow or over else ExitCode.DONE)
