"""The processes of one machine: how they are stopped and how they end."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.ranks.process import RankProcesses, first_failed, rank_variables

# Says that it is ready in its log, then does what its argument says when SIGTERM arrives.
PROGRAM = """
import os, signal, sys, time
action = sys.argv[1]
signal.signal(signal.SIGTERM, signal.SIG_IGN if action == "stay" else lambda *_: sys.exit(int(action)))
sys.stdout.write("ready")
sys.stdout.flush()
time.sleep(60)
"""


@pytest.fixture
def ranks() -> Iterator[RankProcesses]:
    started = RankProcesses(stop_timeout_seconds=30.0, failure_timeout_seconds=0.0)
    yield started
    started.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def start(ranks: RankProcesses, folder: Path, *actions: str) -> None:
    """Start a rank for each action and wait until all are ready."""
    logs = [folder / f"{index}.log" for index, _ in enumerate(actions)]
    for action, log in zip(actions, logs, strict=True):
        ranks.start([sys.executable, "-c", PROGRAM, action], {}, log=log)
    wait_until(lambda: all(log.exists() and log.read_text() == "ready" for log in logs))


def test_a_rank_gets_its_variables_its_log_and_its_folder(ranks: RankProcesses, tmp_path: Path) -> None:
    variables = rank_variables(
        rank=5, local_rank=1, world_size=8, local_world_size=4, address="10.0.0.1", port=99
    )
    program = (
        "import os, sys; sys.stdout.write(' '.join([os.getcwd(), *(os.environ[n] for n in sys.argv[1:])]))"
    )
    log, folder = tmp_path / "log", tmp_path / "folder"
    folder.mkdir()
    ranks.start([sys.executable, "-c", program, *variables], variables, log=log, working_directory=folder)
    wait_until(lambda: ranks.codes == (0,))
    assert log.read_text().split() == [str(folder), "5", "1", "8", "4", "10.0.0.1", "99"]


def test_only_the_first_stop_signal_reaches_the_ranks(ranks: RankProcesses, tmp_path: Path) -> None:
    start(ranks, tmp_path, "75", "stay")
    ranks.stop(signal.SIGTERM)
    wait_until(lambda: ranks.codes[0] is not None)
    ranks.stop(signal.SIGKILL)
    time.sleep(0.1)
    assert ranks.codes == (75, None)


def test_a_rank_that_ignores_the_signal_is_killed_at_the_deadline(tmp_path: Path) -> None:
    ranks = RankProcesses(stop_timeout_seconds=0.0)
    start(ranks, tmp_path, "stay")
    assert ranks.kill_overdue() == []
    ranks.stop(signal.SIGTERM)
    assert ranks.kill_overdue() == [0]
    assert ranks.kill_overdue() == []
    wait_until(lambda: ranks.codes == (128 + signal.SIGKILL,))
    ranks.kill()
    assert ranks.codes == ()


def test_the_limit_of_a_stop_is_asked_when_it_arrives() -> None:
    limits: list[float] = []

    def limit() -> float:
        limits.append(0.0)
        return 0.0

    processes = RankProcesses(stop_timeout_seconds=limit)
    assert limits == []
    processes.stop(signal.SIGTERM)
    processes.stop(signal.SIGTERM)
    assert limits == [0.0]


def test_a_rank_killed_for_waiting_is_not_the_cause(ranks: RankProcesses, tmp_path: Path) -> None:
    start(ranks, tmp_path, "stay")
    ranks.note_failure(9)
    assert ranks.kill_overdue() == [0]
    wait_until(lambda: ranks.codes == (0,))


@pytest.mark.parametrize(("code", "is_hurried"), [(75, False), (1, True), (139, True)])
def test_only_a_crash_hurries_ranks_that_save(
    ranks: RankProcesses, tmp_path: Path, code: int, is_hurried: bool
) -> None:
    start(ranks, tmp_path, "stay")
    ranks.stop(signal.SIGTERM)
    ranks.note_failure(code)
    assert bool(ranks.kill_overdue()) == is_hurried


def test_no_rank_is_left_after_a_kill(ranks: RankProcesses, tmp_path: Path) -> None:
    start(ranks, tmp_path, "stay", "stay")
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    before = set(children.read_text().split())
    ranks.kill()
    assert len(before - set(children.read_text().split())) == 2


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ([None, 0], None),
        ([None, 3], 1),
        ([1, 137, 1], 1),
        ([0, 1, None, 1], 1),
        ([134, None], 0),
        ([75, 9], 1),
    ],
)
def test_the_cause_is_the_rank_ended_by_a_signal_else_the_first(
    codes: list[int | None], cause: int | None
) -> None:
    assert first_failed(codes) == cause
