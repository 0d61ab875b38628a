"""`megaponder bench decode`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.commands.shared import ConfigFile, Overrides, examples, set_up_logging
from pipeline.exit_codes import ExitCode

if TYPE_CHECKING:
    from pipeline.bench.decode import DecodeTime

EPILOG = examples(
    "megaponder bench decode --config pipeline/recipes/ponderlm3_70m.yaml model.vocab_size=2048",
    "megaponder bench decode --config run.yaml --batch-size 32 --minimum-speedup 1.8 training.precision=bf16",
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
) -> None:
    """Time cached decoding of a PonderLM-3 by the steps its tokens take, on one rank and random tokens.

    The router is biased so that every token takes 0, 1, .. K steps, beside the same model without pruning,
    the same sizes without thoughts, and, for GPT-NeoX where transformers is installed, its own decoding.
    Prompts are read before the clock starts. Reads no data.
    """
    set_up_logging()

    import torch

    from megatron_ext.ponder.config import Method
    from pipeline.bench.decode import DecodeSizes, time_decoding
    from pipeline.bench.decode_transformers import time_transformers
    from pipeline.bench.machine import machine_name
    from pipeline.config.load import load_config

    layout = ("parallel.tensor=1", "parallel.pipeline=1", "parallel.data=1")
    run = load_config(config, [*(overrides or []), *layout])
    if run.ponder.method is not Method.PONDERLM3:
        raise typer.BadParameter(
            f"must be a run of ponderlm3, but is one of {run.ponder.method}", param_hint="--config"
        )
    torch.set_num_threads(threads)
    sizes = DecodeSizes(batch_size=batch_size, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    times = time_decoding(run, sizes, repeats=repeats)
    is_neox = run.model.architecture == "gpt_neox"
    theirs = time_transformers(run, sizes, repeats=repeats) if is_neox else None
    title = f"{batch_size} sequences, {prompt_tokens} + {new_tokens} tokens, {run.training.precision}"
    console = Console()
    console.print(_table(times, theirs, title=f"{run.name}: {title}, {machine_name()}, {threads} thread(s)"))
    by_name = {row.name: row.seconds_per_token for row in times}
    speedup = times[0].seconds_per_token / by_name.get("1 steps", times[0].seconds_per_token)
    too_slow = minimum_speedup is not None and speedup < minimum_speedup
    raise typer.Exit(ExitCode.CRASH if too_slow else ExitCode.DONE)


def _table(times: Sequence["DecodeTime"], theirs: float | None, *, title: str) -> Table:
    """Lay the measurements out; the first is what the others are compared with."""
    table = Table(title=title)
    for column in ("decoding", "steps", "per token", "time saved", "operations saved"):
        table.add_column(column, justify="left" if column == "decoding" else "right")
    base = times[0]
    for row in times:
        table.add_row(
            row.name,
            f"{row.mean_steps:.2f}",
            f"{1e3 * row.seconds_per_token:.2f} ms",
            f"{1 - row.seconds_per_token / base.seconds_per_token:.1%}",
            f"{1 - row.flops_per_token / base.flops_per_token:.1%}",
        )
    if theirs is not None:
        saved = f"{1 - theirs / base.seconds_per_token:.1%}"
        table.add_row("vanilla by transformers", "0.00", f"{1e3 * theirs:.2f} ms", saved, "")
    return table
