from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from pipeline.config.errors import ConfigError
from pipeline.shared.exit_codes import ExitCode
from tests.bench.cli import app
from tests.bench.machine import machine_name, num_processors
from tests.bench.pipeline import PassTimes, load_bench_config, render_pass_times
from tests.unit.pipeline.config.settings import changed_settings


@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_the_default_model_has_pipeline_parallelism_only(num_stages: int) -> None:
    config = load_bench_config(None, ["ponder.num_jacobi_iterations=1"], num_stages=num_stages)

    assert (config.parallel.pipeline, config.parallel.world_size) == (num_stages, num_stages)
    assert config.ponder.num_jacobi_iterations == 1
    # With the tokens of a tokenizer the last stage would have far more to do than the others.
    assert config.model.vocab_size == 128


def test_the_layout_of_a_run_is_replaced(tmp_path: Path) -> None:
    layout = {"tensor": 2, "pipeline": 2, "data": 2, "layers_per_stage": [1, 1], "sequence_parallel": True}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(changed_settings(parallel=layout, training__global_batch_size=16)))

    config = load_bench_config(file, [], num_stages=2)

    assert (config.parallel.tensor, config.parallel.pipeline, config.parallel.data) == (1, 2, 1)
    assert config.training.micro_batch_size == 4


def test_more_stages_than_layers_are_rejected() -> None:
    with pytest.raises(ConfigError) as error:
        load_bench_config(None, [], num_stages=5)
    assert "parallel.pipeline" in [problem.path for problem in error.value.problems]


def test_micro_batches_that_are_no_multiple_of_all_stages_are_a_usage_error() -> None:
    result = CliRunner().invoke(app, ["pipeline", "--stages", "4", "--micro-batches", "6"])

    assert result.exit_code == ExitCode.USAGE
    assert "6 on 4" in result.output


def test_the_speedup_is_that_of_looping_over_flushing() -> None:
    times = PassTimes(
        num_stages=2,
        num_micro_batches=4,
        slots=(1, 2),
        looping_seconds=2.0,
        flushing_seconds=3.0,
        largest_difference=0.0,
    )

    assert times.speedup == 1.5


def test_the_table_has_measured_and_expected_speedups() -> None:
    config = load_bench_config(None, [], num_stages=2)
    row = PassTimes(
        num_stages=2,
        num_micro_batches=4,
        slots=(1, 1, 1),
        looping_seconds=1.0,
        flushing_seconds=1.25,
        largest_difference=3e-7,
        stage_cpu_seconds=(0.75, 0.5),
        one_process_seconds=1.5,
        one_process_cpu_seconds=1.25,
    )
    console = Console(width=160)
    with console.capture() as captured:
        console.print(render_pass_times(config, [row]))
    text = captured.get()

    # Three equal passes: 12 units of work and 1 of waiting, against 3 times 4 and 1.
    cells = ("1000 ms", "1250 ms", "1.25 x", f"{15 / 13:.2f} x", "7.7% and 20.0%", "3.0e-07")
    cells += ("1500 ms, 1.50 x", "0.75, 0.50 / 1.25")
    assert [cell for cell in cells if cell not in text] == []
    assert machine_name() in text


def test_stages_that_share_processors_are_reported() -> None:
    row = PassTimes(
        num_stages=2 * num_processors(),
        num_micro_batches=2 * num_processors(),
        slots=(1,),
        looping_seconds=1.0,
        flushing_seconds=1.0,
        largest_difference=0.0,
    )
    console = Console(width=110)
    with console.capture() as captured:
        console.print(render_pass_times(load_bench_config(None, [], num_stages=2), [row]))

    assert f"{row.num_stages} stages" in captured.get()
