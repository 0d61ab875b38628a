"""The exit code of `python -m tests.golden`."""

from collections.abc import Sequence

import pytest

from pipeline.shared.exit_codes import ExitCode
from tests.support.golden.command import _exit_code
from tests.support.golden.compare import CaseResult, Status

PASSED, FAILED, ELSEWHERE, UNKNOWN = (
    Status.PASSED,
    Status.FAILED,
    Status.NOT_APPLICABLE,
    Status.NOT_SUPPORTED,
)


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ((PASSED, PASSED), ExitCode.DONE),
        ((PASSED, ELSEWHERE), ExitCode.DONE),
        ((PASSED, UNKNOWN), ExitCode.NOT_SUPPORTED),
        ((PASSED, FAILED, UNKNOWN), ExitCode.CRASH),
        ((ELSEWHERE,), ExitCode.CRASH),
        ((UNKNOWN,), ExitCode.CRASH),
        ((), ExitCode.CRASH),
    ],
)
def test_only_vectors_that_pass_are_a_success(statuses: Sequence[Status], code: ExitCode) -> None:
    assert _exit_code([CaseResult(name="case", status=status) for status in statuses]) == code
