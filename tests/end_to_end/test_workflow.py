"""From raw text to an exported model in one submission, interrupted on the way and changed afterwards."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cluster.job_record import JobState, find_record
from cluster.local.files import load_supervisor
from tests.support.commands import wait_until
from tests.support.local_jobs import LocalJobs, local_jobs
from tests.support.runs import has_trained, losses
from tests.support.workflow import NAMES, write_pipeline

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

NUM_ITERATIONS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A run of steps that is complete."""

    config: Path
    run: Path
    jobs: LocalJobs

    def submit(self, *words: str) -> dict[str, str]:
        """Submit what is missing and wait for it; return the job of each step that was submitted."""
        finished = self.jobs.command("submit", "--config", str(self.config), *words)
        assert finished.returncode == 0, finished.stderr
        return jobs_of(finished.stdout)

    def marker(self, step: str) -> dict[str, object]:
        content: dict[str, object] = json.loads((self.run / "workflow" / f"{step}.json").read_text())
        return content


def jobs_of(output: str) -> dict[str, str]:
    """Return the ids that a submission has printed, by step."""
    return {job.split("-")[2]: job for job in output.split()}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """All steps, of which the training was killed in the middle and submitted again."""
    folder = tmp_path_factory.mktemp("workflow")
    config = write_pipeline(folder, training={"train_iters": NUM_ITERATIONS}, checkpoint={"keep_last": 2})
    run = folder / "runs" / "tiny"
    with local_jobs(folder / "runs") as jobs:
        submitted = jobs.command("submit", "--config", str(config))
        assert submitted.returncode == 0, submitted.stderr
        first = {step: find_record(folder / "runs", job) for step, job in jobs_of(submitted.stdout).items()}
        assert tuple(first) == NAMES
        refused = jobs.command("submit", "--config", str(config))
        assert refused.returncode == 2
        assert any(record.job_id in refused.stderr for record in first.values())
        wait_until(lambda: has_trained(run, 5), otherwise=f"see {run}")
        supervisor = load_supervisor(first["train"].job_folder).process()
        assert supervisor is not None
        supervisor.kill()
        for step in ("train", "evaluate", "export"):
            jobs.wait_for(first[step], JobState.FAILED)
        complete = Pipeline(config=config, run=run, jobs=jobs)
        assert tuple(complete.submit("--wait")) == NAMES[1:]
        assert jobs.nothing_is_left()
        yield complete


def test_a_workflow_killed_in_the_middle_resumes(pipeline: Pipeline) -> None:
    assert sorted(losses(pipeline.run)) == list(range(1, NUM_ITERATIONS + 1))
    train = find_record(pipeline.run.parent, "tiny-train")
    (log,) = pipeline.jobs.target.logs(train)
    assert "resumed from iteration" in log.read_text()


def test_every_marker_links_inputs_and_output(pipeline: Pipeline) -> None:
    markers = [pipeline.marker(step) for step in NAMES]
    assert [marker["exit_code"] for marker in markers] == [0, 0, 0, 0]
    prepare, train, evaluate, export = markers
    assert list(train["inputs"].values()) == [prepare["output"]]  # type: ignore[attr-defined]  # of JSON
    assert evaluate["inputs"]["checkpoint"] == export["inputs"]["checkpoint"] == train["output"]  # type: ignore[index]
    assert (pipeline.run / "export" / "model.safetensors").exists()
    assert json.loads((pipeline.run / "evaluation.json").read_text())["loss"] > 0


def test_a_finished_workflow_submits_nothing(pipeline: Pipeline) -> None:
    assert pipeline.submit("--wait") == {}


def test_a_changed_evaluation_runs_with_the_export_that_shows_it(pipeline: Pipeline) -> None:
    train = pipeline.marker("train")
    assert list(pipeline.submit("--wait", "evaluation.iters=1")) == ["evaluate", "export"]
    assert pipeline.marker("evaluate")["settings"]["iters"] == 1  # type: ignore[index]  # of JSON
    assert pipeline.marker("train") == train
    assert pipeline.submit("--wait", "evaluation.iters=1") == {}


def test_text_that_was_only_touched_changes_nothing_after_its_preparation(pipeline: Pipeline) -> None:
    before = {step: pipeline.marker(step) for step in NAMES}
    inputs = Path(yaml.safe_load(pipeline.config.read_text())["workflow"][0]["inputs"][0])
    os.utime(next(inputs.rglob("*.txt")), (1, 1))
    assert tuple(pipeline.submit("--wait", "evaluation.iters=1")) == NAMES
    assert pipeline.marker("prepare") != before["prepare"]
    for step in NAMES[1:]:
        assert pipeline.marker(step) == before[step]
    # What was changed for good would run all four.
    next(inputs.rglob("*_00.txt")).write_text("other words")
    finished = pipeline.jobs.command("submit", "--config", str(pipeline.config), "--dry-run")
    assert finished.stdout.count("#!/bin/bash") == 4
