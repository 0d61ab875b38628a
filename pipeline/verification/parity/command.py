"""Compare a parallel layout with one process (`megaponder parity`)."""

import json
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.load import dump_config, load_config
from pipeline.config.schema import RunConfig
from pipeline.ranks.launch import run_ranks
from pipeline.run.inputs import check_inputs
from pipeline.shared.console import open_console, say
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.files import write_atomically
from pipeline.shared.python_start import python_module
from pipeline.shared.tables import Table
from pipeline.verification.parity.compare import FIRST_STEP, GROWTH_PER_STEP, Measured, StepParity, compare
from pipeline.verification.parity.layout import ONE_PROCESS, OPTION, parse_layout, render_layout

logger = logging.getLogger(__name__)


def run_parity(
    config_file: Path,
    layout: str | None,
    *,
    num_steps: int,
    overrides: Sequence[str] = (),
    json_file: Path | None = None,
    console: Console | None = None,
) -> int:
    """Train the same steps on one process and on a layout, and compare them.

    Args:
        config_file: the run.
        layout: see :func:`pipeline.verification.parity.layout.parse_layout`; None takes the run's own.
        num_steps: optimizer steps.
        overrides: further settings of both trainings.
        json_file: also write the results there; ``-`` prints them in place of the table.
        console: where the table goes.

    Returns:
        DONE inside the band, CRASH outside; the exit code of the ranks where they failed.

    Raises:
        ConfigError: with all problems of layout and settings.
    """
    # First, because it reports all mistakes together.
    spread = _load_on_layout(config_file, layout, overrides)
    one = load_config(config_file, [*overrides, *ONE_PROCESS])
    check_inputs(one)
    with tempfile.TemporaryDirectory() as scratch:
        trained = []
        for config in (one, spread):
            code, measured = _train(config, num_steps, Path(scratch))
            if code != ExitCode.DONE:
                logger.error("nothing is compared: the ranks of %s failed", render_layout(config.parallel))
                return code
            trained.append(measured)
    steps = compare(*trained, precision=spread.training.precision, optimizer=spread.optimizer.name)
    return report(steps, spread, json_file=json_file, console=console or open_console())


def report(
    steps: Sequence[StepParity], config: RunConfig, *, json_file: Path | None, console: Console
) -> ExitCode:
    """Print the comparison, write it to a file if requested, and judge it.

    Args:
        steps: all of them.
        config: the run on its layout.
        json_file, console: see :func:`run_parity`.
    """
    record = json.dumps(_record(steps, config), indent=1)
    if json_file == Path("-"):
        say(record)
    else:
        _print(steps, config, console)
        if json_file is not None:
            write_atomically(json_file, record)
    return ExitCode.DONE if all(step.passes for step in steps) else ExitCode.CRASH


def _load_on_layout(config_file: Path, layout: str | None, overrides: Sequence[str]) -> RunConfig:
    settings, problems = ([], []) if layout is None else parse_layout(layout)
    try:
        config = load_config(config_file, [*overrides, *settings])
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems], source=error.source) from None
    if not problems and config.parallel.world_size == 1:
        problems.append(
            ConfigProblem(
                path=OPTION,
                rule="must have at least 2 ranks, to be compared with one process",
                value=render_layout(config.parallel),
                cure="for example tensor=2",
            )
        )
    if problems:
        raise ConfigError(problems)
    return config


def _train(config: RunConfig, num_steps: int, scratch: Path) -> tuple[int, list[Measured]]:
    ranks = config.parallel.world_size
    file, output = scratch / f"{ranks}.yaml", scratch / f"{ranks}.json"
    dump_config(config, file)
    logger.info("%d steps on %s", num_steps, render_layout(config.parallel))
    worker = ["-W", "ignore", *python_module("pipeline.verification.parity.worker"), str(file)]
    code = run_ranks([*worker, "--steps", str(num_steps), "--output", str(output)], num_ranks=ranks)
    steps = json.loads(output.read_text(encoding="utf-8")) if code == ExitCode.DONE else []
    return code, [Measured(**step) for step in steps]


def _print(steps: Sequence[StepParity], config: RunConfig, console: Console) -> None:
    precision, layout = config.training.precision, render_layout(config.parallel)
    table = Table(title=f"{config.name}: one process and {layout}, {precision}", optional=("on layout",))
    table.add_column("step", justify="right")
    for quantity in ("loss", "grad norm"):
        for column in (quantity, "on layout", "difference"):
            table.add_column(column, justify="right", no_wrap=True)
    table.add_column("of the band")
    for step in steps:
        style = "green" if step.passes else "bold red"
        table.add_row(
            str(step.step),
            f"{step.one_process.loss:.6f}",
            f"{step.on_layout.loss:.6f}",
            f"{step.loss_difference:.1e}",
            f"{step.one_process.grad_norm:.6f}",
            f"{step.on_layout.grad_norm:.6f}",
            f"{step.grad_norm_difference:.1e}",
            Text(f"{step.share_of_band:.3f} {'inside' if step.passes else 'outside'}", style=style),
        )
    console.print(table)
    band = FIRST_STEP[precision]
    console.print(
        f"Differences are relative. The band of {precision} is {band.loss:.0e} for the loss and "
        f"{band.grad_norm:.0e} for the gradient norm in step 1, wider by {GROWTH_PER_STEP - 1:.0%} with each "
        "further step; what is inside is rounding.",
        highlight=False,
    )
    outside = [str(step.step) for step in steps if not step.passes]
    if outside:
        console.print(Text.assemble(("outside the band", "bold red"), f" in step {', '.join(outside)}"))


def _record(steps: Sequence[StepParity], config: RunConfig) -> dict[str, object]:
    return {
        "name": config.name,
        "layout": render_layout(config.parallel),
        "precision": config.training.precision,
        "passes": all(step.passes for step in steps),
        "steps": [_finite(asdict(step)) | {"passes": step.passes} for step in steps],
    }


def _finite(values: dict[str, object]) -> dict[str, object]:
    """Write what is not a number as null, which every reader of JSON knows."""
    return {
        name: _finite(value)
        if isinstance(value, dict)
        else (None if isinstance(value, float) and not math.isfinite(value) else value)
        for name, value in values.items()
    }
