"""`python -m tests.bench`."""

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from pipeline.commands.shared import ConfigFile, Overrides, examples, set_up_logging
from pipeline.shared.console import table_console
from pipeline.shared.exit_codes import ExitCode
from tests.bench import convert_command, data_command, decode_command, submit

app = typer.Typer(no_args_is_help=True, help="Measure two things in one run, and their ratio.")
app.command(epilog=data_command.EPILOG)(data_command.data)
app.command(epilog=convert_command.EPILOG)(convert_command.convert)
app.command(epilog=decode_command.EPILOG)(decode_command.decode)
app.command(epilog=submit.EPILOG)(submit.submit)


@app.command(
    epilog=examples(
        "python -m tests.bench attention",
        "python -m tests.bench attention --rows 4096 --precision bf16 --minimum-speedup 2",
    )
)
def attention(
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of a sequence: tokens x slots.")] = 2048,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences.")] = 1,
    heads: Annotated[int, typer.Option(min=1, metavar="N", help="Query heads.")] = 8,
    query_groups: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Key heads; default: as many.", show_default=False)
    ] = None,
    head_size: Annotated[int, typer.Option(min=1, metavar="N", help="Channels of a head.")] = 64,
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Type of queries, keys, values.")
    ] = "fp32",
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed rounds; medians are shown.")] = 5,
    minimum_speedup: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="RATIO", help="Exit with 1 below this ratio.", show_default=False),
    ] = None,
) -> None:
    """Time attention with weighted keys against a dense bias, forward and backward, on the same inputs."""
    import torch

    from megatron_ext.device import device
    from tests.bench.attention import AttentionSizes, time_attention

    groups = query_groups or heads
    if heads % groups:
        raise typer.BadParameter(
            f"must divide --heads ({heads}), but is {groups}", param_hint="--query-groups"
        )
    sizes = AttentionSizes(
        batch_size=batch_size,
        num_rows=rows,
        num_heads=heads,
        num_query_groups=groups,
        head_size=head_size,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )
    times = time_attention(sizes, repeats=repeats, device=device())
    table = Table(
        title=f"{batch_size} x {rows} rows, {heads} heads ({groups} key heads) of {head_size}, {precision}, "
        f"{device()} with {torch.get_num_threads()} thread(s)"
    )
    for column in ("attention", "forward and backward", "speed"):
        table.add_column(column, justify="left" if column == "attention" else "right")
    table.add_row("dense bias", f"{1e3 * times.dense_seconds:.1f} ms", "1.00 x")
    table.add_row("weighted keys", f"{1e3 * times.weighted_seconds:.1f} ms", f"{times.speedup:.2f} x")
    console = Console()
    console.print(table)
    console.print(f"largest relative difference of outputs and gradients: {times.largest_difference:.1e}")
    too_slow = minimum_speedup is not None and times.speedup < minimum_speedup
    raise typer.Exit(ExitCode.CRASH if too_slow else ExitCode.DONE)


@app.command(
    epilog=examples(
        "python -m tests.bench metrics --config pipeline/recipes/demo.yaml",
        "python -m tests.bench metrics --config run.yaml metrics.interval=10 --maximum-share 0.01",
    )
)
def metrics(
    config: ConfigFile,
    overrides: Overrides = None,
    intervals: Annotated[
        int, typer.Option(min=1, metavar="N", help="Timed logging intervals; medians are shown.")
    ] = 3,
    maximum_share: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="SHARE", help="Exit with 1 above this share.", show_default=False),
    ] = None,
) -> None:
    """Time the statistics and logs of a run beside its training steps, on one rank and random tokens.

    Reads no data and writes nothing that stays.
    """
    set_up_logging()

    from megatron_ext.device import device
    from pipeline.config.load import load_config
    from tests.bench.metrics import measure_metrics

    layout = ("parallel.tensor=1", "parallel.data=1", "parallel.sequence_parallel=false")
    run = load_config(config, [*(overrides or []), *layout])
    with tempfile.TemporaryDirectory() as folder:
        cost = measure_metrics(run, Path(folder), num_intervals=intervals)
    table = Table(title=f"{run.name}, {device()}, logging every {cost.interval} steps")
    for column in ("what", "per step", "share of the step"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = {
        "training step": cost.step_seconds,
        "sums over tokens": cost.statistics_seconds,
        "logging": cost.logging_seconds / cost.interval,
        "all metrics": cost.metrics_seconds,
    }
    for name, seconds in rows.items():
        table.add_row(name, f"{1e3 * seconds:.3f} ms", f"{seconds / cost.step_seconds:.2%}")
    Console().print(table)
    is_too_much = maximum_share is not None and cost.share > maximum_share
    raise typer.Exit(ExitCode.CRASH if is_too_much else ExitCode.DONE)


@app.command(
    epilog=examples(
        "python -m tests.bench memory",
        "python -m tests.bench memory --maximum-error 0.1",
        "python -m tests.bench memory --config pipeline/recipes/tiny_ponderlm3.yaml parallel.recompute=full",
    )
)
def memory(
    overrides: Overrides = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="YAML file of a run; default: small runs of every method and recomputation.",
            show_default=False,
        ),
    ] = None,
    maximum_error: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="SHARE", help="Exit with 1 above this error.", show_default=False),
    ] = None,
) -> None:
    """Hold the memory that `megaponder plan` says against the tensors that training steps have alive.

    On one rank and random tokens; reads no data. Counted are tensors, not what an allocator keeps.
    """
    set_up_logging()

    from pipeline.config.load import load_config
    from tests.bench.memory import bench_configs, compare_memory

    runs = list(bench_configs())
    if config is not None or overrides:
        layout = ("parallel.tensor=1", "parallel.pipeline=1", "parallel.data=1")
        runs = [load_config(config, [*(overrides or []), *layout, "parallel.sequence_parallel=false"])]
    table = Table(title="MB of tensors: planned / measured")
    for column in ("run", "between steps", "at the peak", "error", "error of what a step adds"):
        table.add_column(column, justify="left" if column == "run" else "right")
    errors = []
    for run in runs:
        found = compare_memory(run)
        errors.append(abs(found.error))
        table.add_row(
            found.name,
            f"{found.planned_state / 1e6:.1f} / {found.measured_state / 1e6:.1f}",
            f"{found.planned_peak / 1e6:.1f} / {found.measured_peak / 1e6:.1f}",
            f"{found.error:+.1%}",
            f"{found.activation_error:+.1%}",
        )
    console = table_console()
    console.print(table)
    console.print(f"largest error {max(errors):.1%}")
    is_too_much = maximum_error is not None and max(errors) > maximum_error
    raise typer.Exit(ExitCode.CRASH if is_too_much else ExitCode.DONE)


@app.command(
    epilog=examples(
        "python -m tests.bench pipeline",
        "python -m tests.bench pipeline --stages 2 --micro-batches 8 ponder.num_jacobi_iterations=3",
        "python -m tests.bench pipeline --config run.yaml --stages 4 --micro-batches 16",
    )
)
def pipeline(
    overrides: Overrides = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="YAML file of a run; default: a small PonderLM-2 that is made for this.",
            show_default=False,
        ),
    ] = None,
    stages: Annotated[
        list[int] | None,
        typer.Option(min=2, metavar="P", help="Pipeline stages; can be repeated. Default: 2 and 4."),
    ] = None,
    micro_batches: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="M", help="Micro-batches of a step; can be repeated. Default: 4 and 8."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed rounds; medians are shown.")] = 5,
) -> None:
    """Time passes as virtual pipeline stages against flushing the pipeline between passes.

    Both run the same stages on the same random tokens, one rank per stage on this machine, in turns; timed is
    forward, backward and the reduction of gradients. Beside it stands what the order of the work alone lets
    expect. Reads no data.

    Exit code 1: the gradients of both differ by more than rounding.
    """
    set_up_logging()

    import torch

    from tests.bench.machine import num_processors
    from tests.bench.pass_times import render_pass_times
    from tests.bench.pipeline import ROUNDING, load_bench_config, time_passes

    stages, micro_batches = stages or [2, 4], micro_batches or [4, 8]
    unequal = [f"{number} on {size}" for size in stages for number in micro_batches if number % size]
    if unequal:
        raise typer.BadParameter(
            f"must be multiples of every --stages, but there are {', '.join(unequal)}",
            param_hint="--micro-batches",
        )
    if torch.cuda.is_available() and max(stages) > num_processors():
        raise typer.BadParameter(
            f"must be at most {num_processors()}, the GPUs of this machine, but is {max(stages)}; "
            "CUDA_VISIBLE_DEVICES= times the CPU",
            param_hint="--stages",
        )
    # All settings are checked before anything is timed.
    runs = [load_bench_config(config, overrides or [], num_stages=number) for number in stages]
    times = [row for run in runs for row in time_passes(run, micro_batches, repeats=repeats)]
    table_console().print(render_pass_times(runs[0], times))
    largest = max(row.largest_difference for row in times)
    raise typer.Exit(ExitCode.DONE if largest <= ROUNDING[runs[0].training.precision] else ExitCode.CRASH)
