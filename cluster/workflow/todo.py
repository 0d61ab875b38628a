"""Which stages are to run, and why: a pure function of what is there."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.workflow.marker import Marker


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """A stage as it is asked for, and as it was run last.

    Attributes:
        name: of the stage.
        needs: stages before it whose output it reads.
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
class PlannedStage:
    """What becomes of a stage.

    Attributes:
        name: of the stage.
        reason: why it runs; None: it is done.
        after: stages that run now, for whose success it waits.
    """

    name: str
    reason: str | None
    after: tuple[str, ...] = ()


def plan_stages(stages: Sequence[StageState], *, again: Collection[str] = ()) -> tuple[PlannedStage, ...]:
    """Decide what runs: what has not succeeded with these settings and inputs, and what reads its output.

    Args:
        stages: in their order.
        again: names of stages that run whatever is there.
    """
    planned: dict[str, PlannedStage] = {}
    for stage in stages:
        after = tuple(name for name in stage.needs if name in planned and planned[name].reason is not None)
        reason = reason_to_run(stage)
        if after:
            reason = f"after {' and '.join(after)}"
        elif stage.name in again:
            reason = "asked for"
        planned[stage.name] = PlannedStage(name=stage.name, reason=reason, after=after)
    return tuple(planned.values())


def reason_to_run(stage: StageState) -> str | None:
    """Return why a stage is not done, whatever becomes of the others; None: it is."""
    marker = stage.marker
    if marker is None:
        return "has not run"
    differences = differing(marker, stage)
    if differences:
        return ", ".join(differences[:3]) + (" ..." if len(differences) > 3 else "")
    if marker.exit_code is None:
        return "has begun, and not ended"
    if marker.exit_code != 0:
        return f"ended with exit code {marker.exit_code}"
    if stage.output is None:
        return "its output is gone"
    return None if stage.output == marker.output else "its output was changed"


def differing(marker: Marker, stage: StageState) -> list[str]:
    """Say in which settings and inputs a stage differs from its last run."""
    before = marker.settings
    settings = [
        f"{name} is {_shown(stage.settings.get(name))}, was {_shown(before.get(name))}"
        for name in dict.fromkeys([*stage.settings, *before])
        if stage.settings.get(name) != before.get(name)
    ]
    inputs = [
        f"other {name}" for name, identity in stage.inputs.items() if marker.inputs.get(name) != identity
    ]
    return settings + inputs


def _shown(value: Any) -> str:
    return "absent" if value is None else str(value)
