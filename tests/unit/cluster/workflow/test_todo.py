from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cluster.workflow.marker import Marker
from cluster.workflow.todo import StageState, plan_stages, reason_to_run


def done(name: str, *needs: str) -> StageState:
    """A stage that is as it was when it succeeded."""
    marker = Marker(
        stage=name,
        arguments=(name,),
        settings={"iters": 4},
        inputs={"text": "one"},
        job="first",
        started_at=datetime.now(UTC),
    )
    return StageState(
        name=name,
        needs=needs,
        settings={"iters": 4},
        inputs={"text": "one"},
        output="made",
        marker=marker.ended(0, "made"),
    )


STAGES = (
    done("prepare"),
    done("train", "prepare"),
    done("evaluate", "prepare", "train"),
    done("export", "train"),
)


def changed(name: str, **changes: object) -> tuple[StageState, ...]:
    return tuple(replace(stage, **changes) if stage.name == name else stage for stage in STAGES)  # type: ignore[arg-type]  # any field


def running(stages: tuple[StageState, ...], **choice: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the stages that run, each with those it waits for."""
    planned = plan_stages(stages, **choice)
    return {stage.name: stage.after for stage in planned if stage.reason is not None}


def test_what_is_done_does_not_run() -> None:
    assert running(STAGES) == {}


def test_what_has_never_run_runs_each_after_what_it_needs() -> None:
    new = tuple(replace(stage, marker=None, output=None) for stage in STAGES)
    assert running(new) == {
        "prepare": (),
        "train": ("prepare",),
        "evaluate": ("prepare", "train"),
        "export": ("train",),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("prepare", ["prepare", "train", "evaluate", "export"]),
        ("train", ["train", "evaluate", "export"]),
        ("evaluate", ["evaluate"]),
        ("export", ["export"]),
    ],
)
def test_a_change_runs_the_stage_and_what_reads_its_output_and_nothing_else(
    name: str, expected: list[str]
) -> None:
    assert list(running(changed(name, settings={"iters": 8}))) == expected
    assert list(running(changed(name, inputs={"text": "other"}))) == expected
    assert list(running(changed(name, output=None))) == expected
    assert list(running(STAGES, again=(name,))) == expected


def test_a_stage_waits_only_for_stages_that_run() -> None:
    assert running(changed("train", output=None))["evaluate"] == ("train",)
    assert running(changed("train", output=None))["train"] == ()


def test_the_reason_names_what_differs() -> None:
    stage = done("evaluate")
    assert stage.marker is not None
    cases = {
        None: stage,
        "has not run": replace(stage, marker=None),
        "iters is 8, was 4": replace(stage, settings={"iters": 8}),
        "other text": replace(stage, inputs={"text": "two"}),
        "its output is gone": replace(stage, output=None),
        "its output was changed": replace(stage, output="by hand"),
        "has begun, and not ended": replace(
            stage, marker=stage.marker.model_copy(update={"exit_code": None, "output": None})
        ),
        "ended with exit code 93": replace(stage, marker=stage.marker.ended(93, None)),
    }
    for reason, state in cases.items():
        assert reason_to_run(state) == reason


def test_many_differences_are_cut_short() -> None:
    settings = dict.fromkeys("abcd", 1)
    reason = reason_to_run(replace(done("train"), settings=settings))
    assert reason == "a is 1, was absent, b is 1, was absent, c is 1, was absent ..."
