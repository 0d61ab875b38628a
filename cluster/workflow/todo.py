"""Which steps of a workflow run, and why: a pure function of their states."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.workflow.marker import Marker


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """A step as it is configured now, and its last run.

    Attributes:
        name: of the step.
        needs: earlier steps whose output it reads.
        settings, inputs, output: at present; see `cluster.workflow.marker.Marker`.
        marker: of its last run.
    """

    name: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]
    inputs: Mapping[str, str | None]
    output: str | None
    marker: Marker | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """The decision on a step.

    Attributes:
        name: of the step.
        reason: why it runs; None: it is done.
        after: steps that run before it, which must succeed.
    """

    name: str
    reason: str | None
    after: tuple[str, ...] = ()


def plan_steps(steps: Sequence[StepState], *, again: Collection[str] = ()) -> tuple[PlannedStep, ...]:
    """Decide which steps run: those not done with these settings and inputs, and the readers of their output.

    Args:
        steps: in their order.
        again: names of steps that run although they are done.
    """
    planned: dict[str, PlannedStep] = {}
    for step in steps:
        after = tuple(name for name in step.needs if name in planned and planned[name].reason is not None)
        reason = reason_to_run(step)
        if after:
            reason = f"after {' and '.join(after)}"
        elif step.name in again:
            reason = "requested"
        planned[step.name] = PlannedStep(name=step.name, reason=reason, after=after)
    return tuple(planned.values())


def reason_to_run(step: StepState) -> str | None:
    """Return why a step has to run, regardless of the others; None if it is done."""
    marker = step.marker
    if marker is None:
        return "has not run"
    differences = differing(marker, step)
    if differences:
        return ", ".join(differences[:3]) + (" ..." if len(differences) > 3 else "")
    if marker.exit_code is None:
        return "has begun, but not ended"
    if marker.exit_code != 0:
        return f"ended with exit code {marker.exit_code}"
    if step.output is None:
        return "its output is missing"
    return None if step.output == marker.output else "its output was changed"


def differing(marker: Marker, step: StepState) -> list[str]:
    """Return the settings and inputs in which a step differs from its last run, in words."""
    before = marker.settings
    settings = [
        f"{name} is {_shown(step.settings.get(name))}, was {_shown(before.get(name))}"
        for name in dict.fromkeys([*step.settings, *before])
        if step.settings.get(name) != before.get(name)
    ]
    inputs = [
        f"other {name}" for name, identity in step.inputs.items() if marker.inputs.get(name) != identity
    ]
    return settings + inputs


def _shown(value: Any) -> str:
    return "absent" if value is None else str(value)
