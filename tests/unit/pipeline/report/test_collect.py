import dataclasses
import re
from pathlib import Path

import pytest
from rich.console import Console

from megatron_ext.ponder.config import Method
from pipeline.cost.flops import FlopsAccount
from pipeline.evaluation.results import save_json
from pipeline.evaluation.tasks import save_task_report
from pipeline.metrics.jsonl import JsonlSink
from pipeline.metrics.records import LossPoint
from pipeline.report.collect import collect_report
from pipeline.report.data import Command
from pipeline.report.render import render_report
from pipeline.report.table import render_results, result_rows
from tests.unit.pipeline.metrics.records import SHAPE, training_record, validation_record
from tests.unit.pipeline.report.sample_data import (
    few_figures,
    made_up_evaluation,
    made_up_report,
    made_up_sample,
    made_up_tasks,
)

FLOPS = FlopsAccount(
    shape=SHAPE,
    method=Method.PONDERLM3,
    num_latent_thoughts=3,
)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    for iteration, active in ((10, 1.0), (20, 0.75)):
        scalars = {f"ponder/active-fraction/step_{step}": active for step in range(1, 4)}
        scalars["ponder/mean-steps"] = 3 * active
        sink.write_training(
            training_record(iteration=iteration, tokens_per_second=100.0 * iteration, scalars=scalars)
        )
    sink.write_validation(validation_record())
    sink.close()
    save_json(made_up_evaluation(), tmp_path / "evaluation.json")
    save_json(made_up_sample(), tmp_path / "sample.json")
    save_task_report(made_up_tasks(), tmp_path / "tasks.json")
    (tmp_path / "run_config.yaml").write_text("name: demo\n")
    return tmp_path


def test_a_run_folder_becomes_a_report(run_folder: Path) -> None:
    commands = (Command(purpose="Watch", line="tensorboard"),)
    data = collect_report(
        run_folder,
        name="demo",
        flops=FLOPS,
        flops_per_token_train=FLOPS.training_per_token(1.5),
        facts=(("a", "b"),),
        commands=commands,
    )
    assert data.training_curve == ((10.0, 5.25), (20.0, 5.25))
    assert data.heldout_curve == ((20.0, 4.0),)
    assert data.mean_steps_curve == ((10.0, 3.0), (20.0, 2.25))
    assert data.pruned_curves == (((10.0, 0.0), (20.0, 0.25)),) * 3
    # The point without a loss is skipped.
    assert data.steps_allowed == ((0.0, 5.0),)
    assert data.training_tokens_per_second == 1500.0
    assert data.flops_per_token_train == FLOPS.training_per_token(1.5)
    assert data.flops_saved == pytest.approx(FLOPS.saved_fraction(1.5))
    assert data.samples == (made_up_sample(),)
    # 320 samples of 16 tokens.
    assert data.heldout_by_tokens == ((5120.0, 4.0),)
    assert data.learning_rate_curve == ((10.0, 1e-3), (20.0, 1e-3))
    assert data.grad_norm_curve == ((10.0, 1.2345), (20.0, 1.2345))
    assert data.tasks == made_up_tasks()
    assert data.speeds == made_up_evaluation().speeds != ()
    times = [value for name, value in result_rows(data) if name.startswith("decoding")]
    assert times == [speed.summary for speed in data.speeds]
    assert data.worth == made_up_evaluation().worth != ()
    rows, page = dict(result_rows(data)), render_report([data])
    assert rows["loss with no step"] == "3.6100; 0.00 steps, 3.00 MFLOPs, 1.6 ms per token"
    assert all(f"{point.loss:.4f}" in page for point in data.worth)
    assert 'id="pondering"' in page


def test_a_run_without_a_sample_still_has_a_report(run_folder: Path) -> None:
    (run_folder / "sample.json").unlink()
    (run_folder / "tasks.json").unlink()
    data = collect_report(
        run_folder, name="demo", flops=FLOPS, flops_per_token_train=1e6, facts=(), commands=()
    )
    assert data.samples == ()
    assert data.tasks is None
    few = dataclasses.replace(few_figures(), samples=data.samples, tasks=data.tasks)
    assert not {'id="sample"', 'id="tasks"'} & set(re.findall('id="[a-z]+"', render_report([few])))


def test_the_table_shows_the_results() -> None:
    rows = dict(result_rows(made_up_report()))
    assert rows["held-out loss"] == "3.2517 nats/token (perplexity 25.8)"
    assert rows["unigram entropy"] == "5.9031 nats/token"
    assert rows["below unigram"] == "2.6514 nats/token"
    assert rows["mean steps per token"] == "1.877 of 3"
    assert rows["pruned at step 1, 2, ..."] == "9.8%  31.7%  70.8%"
    assert rows["mean steps, hardest quarter"] == "2.600"
    assert rows["inference FLOPs saved"] == "27.3% (6.90 MFLOPs per token)"
    assert rows["Jacobi residual by sweep"] == "0.2100  0.0840 (contraction 0.400)"
    console = Console(width=120)
    with console.capture() as captured:
        console.print(render_results(made_up_report()))
    assert all(name in captured.get() for name in rows)


def test_results_of_another_run_are_left_out_and_further_texts_are_shown(run_folder: Path) -> None:
    other = dataclasses.replace(made_up_tasks(), checkpoint="runs/other/somewhere/iter_0000400")
    save_task_report(other, run_folder / "tasks.json")
    save_json(made_up_sample(), run_folder / "sample_2.json")
    data = collect_report(
        run_folder, name="demo", flops=FLOPS, flops_per_token_train=1e6, facts=(), commands=()
    )
    assert data.tasks is None
    assert data.samples == (made_up_sample(),) * 2


def test_a_method_that_does_not_halt_is_worth_what_the_last_evaluation_of_the_training_found(
    run_folder: Path,
) -> None:
    def worth() -> tuple[LossPoint, ...]:
        return collect_report(
            run_folder, name="demo", flops=flops, flops_per_token_train=1e6, facts=(), commands=()
        ).worth

    flops = dataclasses.replace(FLOPS, method=Method.PONDERLM2)
    evaluation = dataclasses.replace(
        made_up_evaluation(), method="ponderlm2", steps_count=(), pruning_threshold=None, worth=()
    )
    # Of iteration 400, while the training evaluated iteration 20.
    save_json(evaluation, run_folder / "evaluation.json")
    assert worth() == ()
    save_json(dataclasses.replace(evaluation, iteration=20), run_folder / "evaluation.json")
    whole, none = worth()
    assert (whole.loss, none.loss) == (evaluation.loss, 5.0)
    assert whole.flops_per_token == flops.inference_per_token(3)
    assert none.flops_per_token == flops.limited_to(0).inference_per_token(0) < whole.flops_per_token
