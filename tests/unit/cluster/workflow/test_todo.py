from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cluster.workflow.marker import Marker
from cluster.workflow.todo import StepState, plan_steps, reason_to_run


def done(name: str, *needs: str) -> StepState:
    """A step that is as it was when it succeeded."""
    marker = Marker(
        step=name,
        arguments=(name,),
        settings={"iters": 4},
        inputs={"text": "one"},
        job="first",
        started_at=datetime.now(UTC),
    )
    return StepState(
        name=name,
        needs=needs,
        settings={"iters": 4},
        inputs={"text": "one"},
        output="made",
        marker=marker.ended(0, "made"),
    )


STEPS = (
    done("prepare"),
    done("train", "prepare"),
    done("evaluate", "prepare", "train"),
    done("export", "train"),
)


def changed(name: str, **changes: object) -> tuple[StepState, ...]:
    return tuple(replace(step, **changes) if step.name == name else step for step in STEPS)  # type: ignore[arg-type]  # any field


def running(steps: tuple[StepState, ...], **choice: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the steps that run, each with those it waits for."""
    planned = plan_steps(steps, **choice)
    return {step.name: step.after for step in planned if step.reason is not None}


def test_what_is_done_does_not_run() -> None:
    assert running(STEPS) == {}


def test_what_has_never_run_runs_each_after_what_it_needs() -> None:
    new = tuple(replace(step, marker=None, output=None) for step in STEPS)
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
def test_a_change_runs_the_step_and_what_reads_its_output_and_nothing_else(
    name: str, expected: list[str]
) -> None:
    assert list(running(changed(name, settings={"iters": 8}))) == expected
    assert list(running(changed(name, inputs={"text": "other"}))) == expected
    assert list(running(changed(name, output=None))) == expected
    assert list(running(STEPS, again=(name,))) == expected


def test_a_step_waits_only_for_steps_that_run() -> None:
    assert running(changed("train", output=None))["evaluate"] == ("train",)
    assert running(changed("train", output=None))["train"] == ()


def test_the_reason_names_what_differs() -> None:
    step = done("evaluate")
    assert step.marker is not None
    cases = {
        None: step,
        "has not run": replace(step, marker=None),
        "iters is 8, was 4": replace(step, settings={"iters": 8}),
        "other text": replace(step, inputs={"text": "two"}),
        "its output is missing": replace(step, output=None),
        "its output was changed": replace(step, output="by hand"),
        "has begun, but not ended": replace(
            step, marker=step.marker.model_copy(update={"exit_code": None, "output": None})
        ),
        "ended with exit code 93": replace(step, marker=step.marker.ended(93, None)),
    }
    for reason, state in cases.items():
        assert reason_to_run(state) == reason


def test_many_differences_are_cut_short() -> None:
    settings = dict.fromkeys("abcd", 1)
    reason = reason_to_run(replace(done("train"), settings=settings))
    assert reason == "a is 1, was absent, b is 1, was absent, c is 1, was absent ..."
