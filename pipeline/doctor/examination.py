"""All checks of a machine, in the order in which they are shown."""

from collections.abc import Iterator

from pipeline.checkpoint.origin import checkout_commit, version_of
from pipeline.doctor.clusters import cluster_findings
from pipeline.doctor.device import device_findings
from pipeline.doctor.finding import Finding, State
from pipeline.doctor.machine import machine_findings
from pipeline.doctor.packages import package_findings

__all__ = ["examine"]


def examine() -> Iterator[Finding]:
    """Yield the findings of all checks; imports torch and Megatron, which takes seconds."""
    commit = checkout_commit()
    found = f"{version_of('megaponder') or '?'}{f', commit {commit}' if commit else ''}"
    yield Finding(name="megaponder", state=State.OK, found=found)
    yield from package_findings()
    yield from device_findings()
    yield from machine_findings()
    yield from cluster_findings()
