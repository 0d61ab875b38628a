"""How many CPUs this process may use: by its affinity, and by the limit of its container or job."""

import math
import os
from pathlib import Path, PurePosixPath

__all__ = ["usable_cpus"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cpus(*, cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP) -> int:
    """Return the number of CPUs, at least 1.

    Args:
        cgroups, own_cgroup: where the kernel shows limits, and to which group of them this process belongs.
    """
    allowed = len(os.sched_getaffinity(0))
    limits = [limit for folder in _folders(cgroups, own_cgroup) if (limit := _limit_of(folder)) is not None]
    return max(min([allowed, *(math.ceil(limit) for limit in limits)]), 1)


def _folders(cgroups: Path, own_cgroup: Path) -> list[Path]:
    """Return the folders of this process's group and of those around it, in both versions of cgroups."""
    try:
        lines = own_cgroup.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        group = PurePosixPath(name.lstrip("/") or ".")
        found += [root / parent for parent in (group, *group.parents)]
    return found


def _limit_of(folder: Path) -> float | None:
    """Return the CPUs that a group may use; None without a limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        limit = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        # No limit is written as `max` or -1.
        return None
    return limit if limit > 0 else None
