"""The checks for a machine with a GPU, in the tiny sizes that a CPU can do."""

import json
from pathlib import Path

import pytest

from scripts.gpu_check.checks import BY_NAME, CHECKS, TOTAL_SECONDS, Check
from scripts.gpu_check.child import do_check
from scripts.gpu_check.outcome import OUTCOME_NAME, Status, load_outcome
from scripts.gpu_check.running import LEAST_SECONDS, run_check, run_checks

# The others run commands, or all golden vectors, which have tests of their own.
IN_THIS_PROCESS = ("machine", "attention", "step", "documents", "methods", "fused", "cudnn", "decode")


@pytest.mark.parametrize("name", IN_THIS_PROCESS)
def test_a_check_measures_and_finds_nothing_wrong(name: str, tmp_path: Path) -> None:
    outcome = do_check(name, tmp_path, is_tiny=True)

    assert outcome.findings == []
    assert outcome.status is Status.PASSED
    assert outcome.figures
    assert load_outcome(tmp_path / OUTCOME_NAME) == outcome
    # Any reader of JSON takes it: no infinity, no value that is not a number.
    assert json.loads(outcome.as_line(), parse_constant=lambda text: pytest.fail(text))["name"] == name


def test_a_check_is_ended_at_its_limit(tmp_path: Path) -> None:
    outcome = run_check(BY_NAME["machine"], tmp_path, is_tiny=True, seconds=0.2)

    assert outcome.status is Status.OVERDUE


def test_a_check_that_ends_without_a_word_has_crashed(tmp_path: Path) -> None:
    unknown = Check(name="unknown", about="", limit_seconds=60, module="nowhere")
    outcome = run_check(unknown, tmp_path, is_tiny=True, seconds=60)

    assert outcome.status is Status.CRASHED


def test_checks_without_time_are_left_out(tmp_path: Path) -> None:
    outcomes = list(run_checks(CHECKS, tmp_path, is_tiny=True, total_seconds=LEAST_SECONDS - 1))

    assert {outcome.status for outcome in outcomes} == {Status.LEFT_OUT}
    assert [outcome.name for outcome in outcomes] == [check.name for check in CHECKS]


def test_every_check_can_be_loaded_and_fits_the_limit() -> None:
    assert all(callable(check.load()) for check in CHECKS)
    assert all(LEAST_SECONDS <= check.limit_seconds < TOTAL_SECONDS for check in CHECKS)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["golden", "attention", "repeat", "resume", "faults"])
def test_a_gpu_passes(name: str, tmp_path: Path) -> None:
    check = BY_NAME[name]
    outcome = run_check(check, tmp_path, is_tiny=name != "golden", seconds=check.limit_seconds)

    assert outcome.status is Status.PASSED, (outcome.summary, outcome.findings)
    assert "CPU" not in outcome.device
