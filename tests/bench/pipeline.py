"""Speed of passes as virtual pipeline stages (looping) relative to flushing the pipeline between passes."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from pipeline.config.load import dump_config, load_config
from pipeline.config.schema import RunConfig
from pipeline.cost.schedule import backward_time, flushing_timeline, looping_timeline
from pipeline.ranks.launch import run_ranks
from tests.bench.machine import machine_name, num_processors

# A model whose stages are slow enough to time, with a vocabulary small enough that all have equal work.
RECIPE = Path(__file__).parents[2] / "pipeline" / "recipes" / "tiny_ponderlm2.yaml"
SIZES = (
    "name=bench_pipeline",
    "model.num_layers=4",
    "model.hidden_size=192",
    "model.ffn_hidden_size=768",
    "model.vocab_size=128",
    "training.seq_length=64",
    "training.micro_batch_size=1",
    "training.global_batch_size=1",
)
ONE_PROCESS = (
    "parallel.tensor=1",
    "parallel.pipeline=1",
    "parallel.data=1",
    "parallel.sequence_parallel=false",
    "parallel.layers_per_stage=null",
)
# Relative differences of gradients that are rounding, by precision of the weights.
ROUNDING = {"fp32": 2e-5, "bf16": 2e-2}
COLUMNS = (
    "stages",
    "micro-batches",
    "looping",
    "flushing",
    "gain",
    "expected",
    "expected bubbles",
    "one process",
    "CPU seconds of stages / of one process",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Median seconds of forward and backward of one step, in both ways.

    Attributes:
        num_stages, num_micro_batches: p and m.
        slots: rows per token of each pass.
        looping_seconds: passes as virtual stages.
        flushing_seconds: with a pipeline flush between passes.
        largest_difference: of the two ways' gradients, relative to the largest element of each weight.
        stage_cpu_seconds: what each stage computed in a looping step; the rest of the time it waited for
            others, or for a core.
        one_process_seconds, one_process_cpu_seconds: of the same step on a single stage.
    """

    num_stages: int
    num_micro_batches: int
    slots: tuple[int, ...]
    looping_seconds: float
    flushing_seconds: float
    largest_difference: float
    stage_cpu_seconds: tuple[float, ...] = ()
    one_process_seconds: float | None = None
    one_process_cpu_seconds: float | None = None

    @property
    def speedup(self) -> float:
        """Speed of looping relative to flushing."""
        return self.flushing_seconds / self.looping_seconds


def load_bench_config(file: Path | None, overrides: Sequence[str], *, num_stages: int) -> RunConfig:
    """Load a run with pipeline parallelism only.

    Args:
        file: of the run; None is a small PonderLM-2 made for this benchmark.
        overrides: further settings.
        num_stages: of the pipeline.

    Raises:
        ConfigError: the settings are invalid, or the model has fewer layers than stages.
    """
    settings = [*(SIZES if file is None else ()), *overrides, *ONE_PROCESS]
    micro_batch_size = load_config(file or RECIPE, settings).training.micro_batch_size
    # The benchmark chooses its own numbers of micro-batches; this one satisfies the rules of the layout.
    smallest = f"training.global_batch_size={micro_batch_size * num_stages}"
    return load_config(file or RECIPE, [*settings, f"parallel.pipeline={num_stages}", smallest])


def time_passes(config: RunConfig, micro_batches: Sequence[int], *, repeats: int) -> list[PassTimes]:
    """Time both ways on local ranks, in turns, and then one process.

    Args:
        config: the run, with pipeline parallelism only.
        micro_batches: numbers of micro-batches.
        repeats: timed rounds; medians are returned.

    Raises:
        RuntimeError: a rank failed.
    """
    parallel = config.parallel.model_copy(update={"pipeline": 1})
    alone = _time_on_ranks(config.model_copy(update={"parallel": parallel}), micro_batches, repeats=repeats)
    return [
        replace(
            row,
            one_process_seconds=one.looping_seconds,
            one_process_cpu_seconds=sum(one.stage_cpu_seconds),
        )
        for row, one in zip(_time_on_ranks(config, micro_batches, repeats=repeats), alone, strict=True)
    ]


def _time_on_ranks(config: RunConfig, micro_batches: Sequence[int], *, repeats: int) -> list[PassTimes]:
    with tempfile.TemporaryDirectory() as scratch:
        file, output = Path(scratch, "config.yaml"), Path(scratch, "times.json")
        dump_config(config, file)
        arguments = [str(file), "--output", str(output), "--repeats", str(repeats)]
        arguments += ["--micro-batches", *map(str, micro_batches)]
        code = run_ranks(
            ["-W", "ignore", "-m", "tests.bench.pipeline_worker", *arguments],
            num_ranks=config.parallel.pipeline,
        )
        if code != 0:
            raise RuntimeError(f"the ranks that time the passes exited with code {code}")
        rows = json.loads(output.read_text(encoding="utf-8"))
    lists = ("slots", "stage_cpu_seconds")
    return [PassTimes(**{**row, **{name: tuple(row[name]) for name in lists}}) for row in rows]


def render_pass_times(config: RunConfig, times: Sequence[PassTimes]) -> RenderableType:
    """Return the measurements as a table, with the speedup expected from the order of the work.

    Args:
        config: the run.
        times: at least one.
    """
    title = f"{config.name}: {config.ponder.method}, {config.training.precision}, {machine_name()}"
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in times:
        table.add_row(*_cells(row, backward_time(config.parallel.recompute)))
    largest = max(row.largest_difference for row in times)
    lines = [
        "gain: speed of looping relative to flushing; expected: from the order of the work and the rows of "
        "each pass alone, on stages of equal speed",
        "one process: time of a single stage, and the speed relative to it",
        f"largest relative difference of gradients: {largest:.1e}",
    ]
    most = max(row.num_stages for row in times)
    if most > num_processors():
        lines.append(
            f"{most} stages share {num_processors()} cores: a waiting stage leaves its core to the others, "
            "which hides the bubbles"
        )
    return Group(table, *lines)


def _cells(row: PassTimes, backward_per_forward: int) -> list[str]:
    looping, flushing = (
        timeline(row.num_stages, row.num_micro_batches, row.slots, backward_per_forward=backward_per_forward)
        for timeline in (looping_timeline, flushing_timeline)
    )
    alone, stages = row.one_process_seconds, ", ".join(f"{one:.2f}" for one in row.stage_cpu_seconds)
    return [
        str(row.num_stages),
        str(row.num_micro_batches),
        f"{1e3 * row.looping_seconds:.0f} ms",
        f"{1e3 * row.flushing_seconds:.0f} ms",
        f"{row.speedup:.2f} x",
        f"{flushing.duration / looping.duration:.2f} x",
        f"{looping.bubble_share:.1%} and {flushing.bubble_share:.1%}",
        "" if alone is None else f"{1e3 * alone:.0f} ms, {alone / row.looping_seconds:.2f} x",
        f"{stages} / {row.one_process_cpu_seconds or 0:.2f}",
    ]
