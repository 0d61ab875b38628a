"""Which steps are to run, and why: a pure function of what is there."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.workflow.marker import Marker


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """A step as it is asked for, and as it was run last.

    Attributes:
        name: of the step.
        needs: steps before it whose output it reads.
        settings, inputs, output: as they are now; see `cluster.workflow.marker.Marker`.
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
    """What becomes of a step.

    Attributes:
        name: of the step.
        reason: why it runs; None: it is done.
        after: steps that run now, for whose success it waits.
    """

    name: str
    reason: str | None
    after: tuple[str, ...] = ()


def plan_steps(steps: Sequence[StepState], *, again: Collection[str] = ()) -> tuple[PlannedStep, ...]:
    """Decide what runs: what has not succeeded with these settings and inputs, and what reads its output.

    Args:
        steps: in their order.
        again: names of steps that run whatever is there.
    """
    planned: dict[str, PlannedStep] = {}
    for step in steps:
        after = tuple(name for name in step.needs if name in planned and planned[name].reason is not None)
        reason = reason_to_run(step)
        if after:
            reason = f"after {' and '.join(after)}"
        elif step.name in again:
            reason = "asked for"
        planned[step.name] = PlannedStep(name=step.name, reason=reason, after=after)
    return tuple(planned.values())


def reason_to_run(step: StepState) -> str | None:
    """Return why a step is not done, whatever becomes of the others; None: it is."""
    marker = step.marker
    if marker is None:
        return "has not run"
    differences = differing(marker, step)
    if differences:
        return ", ".join(differences[:3]) + (" ..." if len(differences) > 3 else "")
    if marker.exit_code is None:
        return "has begun, and not ended"
    if marker.exit_code != 0:
        return f"ended with exit code {marker.exit_code}"
    if step.output is None:
        return "its output is gone"
    return None if step.output == marker.output else "its output was changed"


def differing(marker: Marker, step: StepState) -> list[str]:
    """Say in which settings and inputs a step differs from its last run."""
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
