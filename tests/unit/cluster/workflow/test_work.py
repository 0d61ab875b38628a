from pathlib import Path, PurePath
from typing import Any

import pytest

from cluster.workflow.job import step_job
from cluster.workflow.marker import save_marker
from cluster.workflow.run_step import begin
from cluster.workflow.todo import reason_to_run
from cluster.workflow.work import work_of
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.evaluation.results import EVALUATION_FILE, SAMPLE_FILE
from pipeline.evaluation.tasks import TASKS_FILE
from pipeline.report.collect import SAMPLE_FILES
from tests.unit.pipeline.config.settings import changed_settings

STEPS: list[dict[str, Any]] = [
    {"command": "prepare", "inputs": ["text"], "tokenizer": "t.model", "submit": {"partition": "cpu"}},
    {"command": "train"},
    {"command": "evaluate", "submit": {"wall_time": "1:00:00"}},
]


def config(**changes: Any) -> RunConfig:
    return build_config(changed_settings(workflow=STEPS, **changes))


def settings_of(name: str, config: RunConfig) -> dict[str, Any]:
    step = next(step for step in config.workflow if step.name == name)
    return dict(work_of(config, step, Path("config.yaml")).settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"submit__max_requeues": 3},
        {"evaluation__iters": 3},
        {"metrics__interval": 1},
        {"checkpoint__interval": 5},
        {"parallel__watchdog_seconds": 5},
        {"data__path": "elsewhere"},
    ],
)
def test_a_training_is_not_another_for_what_does_not_change_the_model(changes: dict[str, Any]) -> None:
    assert settings_of("train", config(**changes)) == settings_of("train", config())


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer__lr": 2e-3},
        {"seed": 5},
        {"model__num_layers": 3},
        {"ponder__num_latent_thoughts": 1},
        {"training__train_iters": 7},
        {"data__reset_positions": False},
    ],
)
def test_a_training_is_another_for_what_changes_the_model(changes: dict[str, Any]) -> None:
    assert settings_of("train", config(**changes)) != settings_of("train", config())


def test_an_evaluation_follows_the_settings_of_the_file() -> None:
    assert settings_of("evaluate", config(evaluation__iters=3))["iters"] == 3


def test_steps_need_the_steps_whose_output_they_read() -> None:
    run = config()
    works = [work_of(run, step, Path("config.yaml")) for step in run.workflow]
    assert {work.name: work.needs for work in works} == {
        "prepare": (),
        "train": ("prepare",),
        "evaluate": ("prepare", "train"),
    }


def test_an_export_waits_for_the_evaluation_that_its_model_card_shows(tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = [{"command": "train"}, {"command": "evaluate"}, {"command": "export"}]
    run = build_config(changed_settings(workflow=steps, output_dir=tmp_path))
    work = work_of(run, run.workflow[2], Path("config.yaml"))
    assert work.needs == ("train", "evaluate")
    before = {name: identity() for name, identity in work.inputs.items()}
    (tmp_path / EVALUATION_FILE).write_text("{}")
    after = {name: identity() for name, identity in work.inputs.items()}
    assert {name for name in before if before[name] != after[name]} == {EVALUATION_FILE}


@pytest.mark.parametrize("name", [TASKS_FILE, SAMPLE_FILE, "sample_of_a_poem.json", EVALUATION_FILE])
def test_a_report_is_rendered_again_after_what_it_shows_has_changed(tmp_path: Path, name: str) -> None:
    assert PurePath(name).match(SAMPLE_FILES) or name in (TASKS_FILE, EVALUATION_FILE)
    run = build_config(changed_settings(workflow=[{"command": "report"}], output_dir=tmp_path))
    (tmp_path / "report.html").touch()

    def reason() -> str | None:
        state = work_of(run, run.workflow[0], Path("config.yaml")).state(tmp_path)
        return reason_to_run(state)

    def render() -> None:
        work = work_of(run, run.workflow[0], Path("config.yaml"))
        marker = begin(run, run.workflow[0], work, job="job", again=False)
        assert marker is not None
        save_marker(tmp_path, marker.ended(0, work.output()))

    render()
    assert reason() is None
    for content in ("new", "changed"):
        (tmp_path / name).write_text(content)
        assert reason() is not None
        render()
        assert reason() is None


def test_a_step_other_than_train_is_one_process_with_its_own_resources() -> None:
    run = config(
        submit={
            "target": "slurm",
            "nodes": 2,
            "gpus_per_node": 2,
            "partition": "gpu",
            "wall_time": "9:00:00",
        },
        parallel__data=4,
        training__micro_batch_size=2,
    )
    prepare, train, evaluate = (step_job(run, step) for step in run.workflow)

    def shape(job: Any) -> tuple[int, int, int]:
        return job.resources.nodes, job.resources.ranks_per_node, job.resources.gpus_per_node

    assert (shape(prepare), shape(train), shape(evaluate)) == ((1, 1, 0), (2, 2, 2), (1, 1, 1))
    assert [job.queue.partition for job in (prepare, train, evaluate)] == ["cpu", "gpu", "gpu"]
    assert evaluate.resources.wall_time == "1:00:00"
    assert {job.kind for job in (prepare, train, evaluate)} == {"ranks"}
    assert [job.name for job in (prepare, train, evaluate)] == ["run-prepare", "run-train", "run-evaluate"]


def test_data_are_prepared_on_the_ray_cluster_of_the_job() -> None:
    run = config(submit={"target": "ray"})
    prepare, train, _ = (step_job(run, step) for step in run.workflow)
    assert (prepare.kind, train.kind) == ("driver", "ranks")
    assert prepare.command[-2:] == ("--ray-address", "{ray_address}")
