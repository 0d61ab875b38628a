"""Looping passes through the pipeline as virtual stages against flushing it between them: which is faster?"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.load import dump_config, load_config
from pipeline.config.schema import RunConfig
from pipeline.ranks.launch import run_ranks

# A model whose stages take long enough to be timed, with a vocabulary so small that no stage has more to do.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Median seconds of forward and backward of one step, both ways.

    Attributes:
        num_stages, num_micro_batches: p and m.
        slots: rows per token of each pass.
        looping_seconds: passes as virtual stages.
        flushing_seconds: the pipeline runs empty between passes.
        largest_difference: of the two ways' gradients, relative to the largest element of each weight.
    """

    num_stages: int
    num_micro_batches: int
    slots: tuple[int, ...]
    looping_seconds: float
    flushing_seconds: float
    largest_difference: float

    @property
    def speedup(self) -> float:
        """How many times faster looping is."""
        return self.flushing_seconds / self.looping_seconds


def load_bench_config(file: Path | None, overrides: Sequence[str], *, num_stages: int) -> RunConfig:
    """Load a run for a pipeline alone.

    Args:
        file: the run; None takes a small PonderLM-2 that is made for this.
        overrides: further settings.
        num_stages: of the pipeline.

    Raises:
        ConfigError: the settings are wrong, or the model does not fit on so many stages.
    """
    settings = [*(SIZES if file is None else ()), *overrides, *ONE_PROCESS]
    micro_batch_size = load_config(file or RECIPE, settings).training.micro_batch_size
    # The numbers of micro-batches are the bench's own; the rules of the layout hold for this one too.
    smallest = f"training.global_batch_size={micro_batch_size * num_stages}"
    return load_config(file or RECIPE, [*settings, f"parallel.pipeline={num_stages}", smallest])


def time_passes(config: RunConfig, micro_batches: Sequence[int], *, repeats: int) -> list[PassTimes]:
    """Time both ways on local ranks, in turns.

    Args:
        config: the model on a pipeline of some stages.
        micro_batches: numbers of micro-batches.
        repeats: timed rounds; medians are returned.

    Raises:
        RuntimeError: a rank failed.
    """
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
            raise RuntimeError(f"the ranks that time the passes left with code {code}")
        rows = json.loads(output.read_text(encoding="utf-8"))
    return [PassTimes(**{**row, "slots": tuple(row["slots"])}) for row in rows]
