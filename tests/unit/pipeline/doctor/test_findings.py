import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.doctor.clusters import ray_finding, slurm_finding
from pipeline.doctor.device import device_finding
from pipeline.doctor.finding import Finding, State
from pipeline.doctor.machine import (
    container_finding,
    disk_finding,
    files_finding,
    ports_finding,
    shm_finding,
)
from pipeline.doctor.packages import extra_findings, parse_pins, python_finding, required_finding

PINS = parse_pins(
    [
        "numpy==2.4.6",
        "torch==2.13.0",
        "torch==1.0; python_version < '3'",
        'mypy==2.4.1; extra == "dev"',
        'transformers==5.23.0; extra == "hf"',
        'ray[default]==2.60.0; extra == "ray"',
    ]
)
GIB = 2**30
PYPROJECT = Path(__file__).parents[4] / "pyproject.toml"
H200 = "NVIDIA H200, 580.95, 143771 MiB"


def test_pins_are_read_by_extra() -> None:
    assert PINS == {
        "": {"numpy": "2.4.6", "torch": "2.13.0"},
        "hf": {"transformers": "5.23.0"},
        "ray": {"ray": "2.60.0"},
    }


@pytest.mark.parametrize(
    ("installed", "state", "named"),
    [
        ({"numpy": "2.4.6", "torch": "2.13.0+cu130"}, State.OK, "2"),
        ({"numpy": "2.4.5", "torch": "2.13.0"}, State.WARNING, "numpy 2.4.5"),
        ({"numpy": "2.4.6"}, State.BROKEN, "torch"),
    ],
)
def test_required_packages_are_compared_with_their_pins(
    installed: Mapping[str, str], state: State, named: str
) -> None:
    finding = required_finding(PINS, installed.get)
    assert finding.state is state
    assert named in finding.found
    assert bool(finding.cure) == (state is not State.OK)


def test_an_extra_that_is_absent_is_no_fault() -> None:
    findings = {one.name: one for one in extra_findings(PINS, {"transformers": "5.0"}.get)}
    assert findings["extra hf"].state is State.WARNING
    assert findings["extra ray"].state is State.NOTE
    assert "[ray]" in findings["extra ray"].cure


def test_python_is_one_that_the_project_requires() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    least, beyond = (
        tuple(map(int, part.strip("<>=").split("."))) for part in project["requires-python"].split(",")
    )
    for minor in range(9, 20):
        is_supported = least <= (3, minor) < beyond
        assert python_finding((3, minor)).state is (State.OK if is_supported else State.BROKEN)


@pytest.mark.parametrize(
    ("chosen", "seen", "driver", "built_for", "hidden", "state"),
    [
        ("auto", ["NVIDIA H200, 140 GiB"], [H200], "13.0", None, State.OK),
        ("auto", [], [], "13.0", None, State.NOTE),
        ("cpu", ["NVIDIA H200, 140 GiB"], [H200], "13.0", None, State.NOTE),
        ("auto", [], [H200], "13.0", "", State.WARNING),
        ("auto", [], [H200], "13.0", None, State.BROKEN),
        ("auto", [], [H200], None, None, State.BROKEN),
        ("cuda", [], [], "13.0", None, State.BROKEN),
        ("tpu", [], [], "13.0", None, State.BROKEN),
    ],
)
def test_a_gpu_that_cannot_be_used_is_found(
    chosen: str, seen: list[str], driver: list[str], built_for: str | None, hidden: str | None, state: State
) -> None:
    finding = device_finding(chosen=chosen, seen=seen, driver=driver, built_for=built_for, hidden=hidden)
    assert finding.state is state
    assert bool(finding.cure) == (state in (State.WARNING, State.BROKEN))


@pytest.mark.parametrize(
    ("finding", "state"),
    [
        (shm_finding(16 * GIB), State.OK),
        (shm_finding(64 * 2**20), State.WARNING),
        (shm_finding(None), State.WARNING),
        (disk_finding("disk", Path("/x"), free=100 * GIB, writable=True), State.OK),
        (disk_finding("disk", Path("/x"), free=GIB, writable=True), State.WARNING),
        (disk_finding("disk", Path("/x"), free=100 * GIB, writable=False), State.WARNING),
        (files_finding(1024), State.WARNING),
        (files_finding(65536), State.OK),
        (files_finding(-1), State.OK),
        (ports_finding(connects=True, name=True, is_taken=False), State.OK),
        (ports_finding(connects=True, name=True, is_taken=True), State.NOTE),
        (ports_finding(connects=True, name=False, is_taken=False), State.WARNING),
        (ports_finding(connects=False, name=True, is_taken=False), State.BROKEN),
        (slurm_finding(sbatch=None, scontrol=None), State.NOTE),
        (ray_finding({}, "2.60.0"), State.NOTE),
        (ray_finding({"RAY_ADDRESS": "auto"}, "2.60.0"), State.WARNING),
        # Nothing listens on the port of the discard protocol.
        (ray_finding({"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}, "2.60.0"), State.WARNING),
    ],
)
def test_a_state_has_a_cure_where_something_is_to_be_done(finding: Finding, state: State) -> None:
    assert finding.state is state
    assert bool(finding.cure) == (state is not State.OK)


def test_the_kind_of_container_is_named(tmp_path: Path) -> None:
    assert container_finding({}, tmp_path).found == "none"
    (tmp_path / ".dockerenv").touch()
    assert container_finding({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path).found == "Kubernetes, Docker"


@pytest.mark.parametrize(("answer", "state"), [("UP", State.OK), ("DOWN", State.WARNING)])
def test_slurm_is_asked_whether_its_controller_responds(tmp_path: Path, answer: str, state: State) -> None:
    programs = []
    for name, text in (("sbatch", "slurm 24.11.5"), ("scontrol", f"Slurmctld(primary) at head is {answer}")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{text}'\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        programs.append(os.fspath(program))
    finding = slurm_finding(sbatch=programs[0], scontrol=programs[1])
    assert finding.state is state
    assert "24.11.5" in finding.found
