import os
from pathlib import Path

import pytest

from pipeline.shared.cpus import usable_cpus


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"jobs/cpu.max": "100000 100000\n", "jobs/one/cpu.max": "max 100000\n"}, 1),
        ({"jobs/one/cpu.max": "50000 100000\n"}, 1),
        ({"jobs/other/cpu.max": "100000 100000\n"}, 16),
        ({"cpu.max": "nonsense"}, 16),
    ],
)
def test_the_narrowest_limit_around_the_process_counts(
    tmp_path: Path, files: dict[str, str], cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)))
    own = tmp_path / "own"
    own.write_text("0::/jobs/one\n")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cpus(cgroups=tmp_path, own_cgroup=own) == cpus


def test_the_older_cgroups_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)))
    folder = tmp_path / "cpu,cpuacct" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("200000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    own = tmp_path / "own"
    own.write_text("4:memory:/job\n3:cpu,cpuacct:/job\n")
    assert usable_cpus(cgroups=tmp_path, own_cgroup=own) == 2
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cpus(cgroups=tmp_path, own_cgroup=own) == 16


def test_the_affinity_counts_and_not_the_machine() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
