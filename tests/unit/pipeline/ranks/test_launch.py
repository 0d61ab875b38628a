import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.ranks.launch import run_ranks
from pipeline.shared.exit_codes import ExitCode

PRELUDE = """
import os, pathlib, signal, subprocess, sys, time
rank = int(os.environ["RANK"])
folder = pathlib.Path(sys.argv[1])
def say(name, text=""):
    path = folder / f"{name}{rank}"
    path.with_suffix(".new").write_text(str(text))
    path.with_suffix(".new").rename(path)
"""


def _wait_for(condition: Callable[[], bool], what: str, limit_seconds: float = 20.0) -> None:
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_seconds} seconds: {what}"
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _said(folder: Path, name: str) -> dict[int, str]:
    return {int(path.name[-1]): path.read_text() for path in folder.glob(f"{name}?")}


def _signal_self_when_said(folder: Path, name: str, number: signal.Signals) -> None:
    def send() -> None:
        _wait_for(lambda: len(_said(folder, name)) == 2, f"both ranks say {name}")
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def test_ranks_get_torchruns_variables(tmp_path: Path) -> None:
    body = "say('env', ' '.join(os.environ[name] for name in sys.argv[2:]))"
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "EXTRA"]
    code = run_ranks(
        ["-c", PRELUDE + body, str(tmp_path), *names], num_ranks=2, environment={"EXTRA": "given"}
    )
    assert code == 0
    first, second = (_said(tmp_path, "env")[rank].split() for rank in (0, 1))
    assert first[:4] == ["0", "0", "2", "127.0.0.1"]
    assert second[:4] == ["1", "1", "2", "127.0.0.1"]
    assert first[4:] == second[4:]
    assert first[5] == "given"


def test_a_failed_rank_is_reported_and_the_others_are_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = "say('pid', os.getpid())\nsys.exit(7) if rank == 1 else time.sleep(60)"
    with caplog.at_level(logging.ERROR):
        code = run_ranks(["-c", PRELUDE + body, str(tmp_path)], num_ranks=2, failure_timeout_seconds=0.3)
    assert code == 7
    assert "rank 1 of 2 failed with exit code 7" in caplog.text
    assert not any(_is_alive(int(pid)) for pid in _said(tmp_path, "pid").values())


@pytest.mark.parametrize("leaves", ["time.sleep(60)", "sys.exit(93)"])
def test_an_error_that_no_restart_cures_counts_before_those_that_follow_it(
    tmp_path: Path, leaves: str
) -> None:
    body = f"""
say("start{{}}_".format(len(list(folder.iterdir()))))
if rank == 1:
    pathlib.Path(os.environ["MEGAPONDER_FINAL_ERROR_FILE"]).write_text("93\\nrank 1 has no memory\\n")
    say("noted")
    {leaves}
while not (folder / "noted1").exists():
    time.sleep(0.02)
os.abort()
"""
    code = run_ranks(
        ["-c", PRELUDE + body, str(tmp_path)], num_ranks=2, failure_timeout_seconds=0.3, max_restarts=1
    )
    assert code == 93
    assert len(list(tmp_path.glob("start*"))) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_the_ranks_common_code_returned(
    tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    body = """
def leave(number, frame):
    say("signal", number)
    sys.exit(75)
signal.signal(signal.SIGINT, leave)
signal.signal(signal.SIGTERM, leave)
say("ready")
time.sleep(60)
"""
    _signal_self_when_said(tmp_path, "ready", number)
    with caplog.at_level(logging.ERROR):
        code = run_ranks(["-c", PRELUDE + body, str(tmp_path)], num_ranks=2)
    assert code == ExitCode.REQUEUE
    assert _said(tmp_path, "signal") == {0: str(int(number)), 1: str(int(number))}
    assert caplog.text == ""


FAIL_TWICE = """
attempts = folder / f"attempts{rank}"
number = int(attempts.read_text()) + 1 if attempts.exists() else 1
attempts.write_text(str(number))
sys.exit(int(sys.argv[2]) if number < 3 else 0)
"""


@pytest.fixture
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ranks.launch._FIRST_BACK_OFF_SECONDS", 0.0)


@pytest.mark.usefixtures("no_back_off")
@pytest.mark.parametrize(
    ("code", "max_restarts", "expected", "attempts"),
    [(1, 2, 0, 3), (1, 1, 1, 2), (75, 2, 0, 3), (93, 2, 93, 1), (2, 2, 2, 1)],
)
def test_ranks_restart_after_a_failure_that_a_restart_may_cure(
    tmp_path: Path, code: int, max_restarts: int, expected: int, attempts: int
) -> None:
    arguments = ["-c", PRELUDE + FAIL_TWICE, str(tmp_path), str(code)]
    assert run_ranks(arguments, num_ranks=1, max_restarts=max_restarts) == expected
    assert _said(tmp_path, "attempts") == {0: str(attempts)}


def test_ranks_do_not_restart_after_a_stop_signal(tmp_path: Path) -> None:
    body = "say('ready')\ntime.sleep(60)"
    _signal_self_when_said(tmp_path, "ready", signal.SIGUSR1)
    # Ranks that do not listen yet die of the signal: nothing is lost, and they are to be started elsewhere.
    assert run_ranks(["-c", PRELUDE + body, str(tmp_path)], num_ranks=2, max_restarts=3) == ExitCode.REQUEUE


def test_ranks_that_ignore_the_signal_are_killed_after_the_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('ready', os.getpid())\ntime.sleep(60)"
    _signal_self_when_said(tmp_path, "ready", signal.SIGTERM)
    with caplog.at_level(logging.ERROR):
        code = run_ranks(["-c", PRELUDE + body, str(tmp_path)], num_ranks=2, stop_timeout_seconds=0.3)
    assert code == 128 + signal.SIGKILL
    assert "ranks [0, 1] did not leave in time" in caplog.text
    assert not any(_is_alive(int(pid)) for pid in _said(tmp_path, "ready").values())


def test_a_second_interrupt_kills_the_ranks_at_once(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGINT, lambda *_: say('heard'))\nsay('ready', os.getpid())\n"
    body += "end = time.monotonic() + 60\nwhile time.monotonic() < end: time.sleep(1)"
    for name in ("ready", "heard"):
        _signal_self_when_said(tmp_path, name, signal.SIGINT)
    code = run_ranks(["-c", PRELUDE + body, str(tmp_path)], num_ranks=2, stop_timeout_seconds=60.0)
    assert code == ExitCode.INTERRUPTED
    assert not any(_is_alive(int(pid)) for pid in _said(tmp_path, "ready").values())


def test_no_helper_of_a_rank_is_left_behind(tmp_path: Path) -> None:
    body = "say('helper', subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    assert run_ranks(["-c", PRELUDE + body, str(tmp_path)], num_ranks=2) == 0
    helpers = [int(pid) for pid in _said(tmp_path, "helper").values()]
    assert len(helpers) == 2
    _wait_for(lambda: not any(_is_alive(pid) for pid in helpers), "helpers are gone")


def test_a_killed_launcher_leaves_no_rank(tmp_path: Path, repository: Path) -> None:
    body = "say('pid', os.getpid())\ntime.sleep(60)"
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pipeline.ranks.launch import run_ranks; run_ranks(sys.argv[1:], num_ranks=2)",
            "-c",
            PRELUDE + body,
            str(tmp_path),
        ],
        cwd=repository,
    )
    try:
        _wait_for(lambda: len(_said(tmp_path, "pid")) == 2, "both ranks run")
    finally:
        launcher.kill()
        launcher.wait()
    pids = [int(pid) for pid in _said(tmp_path, "pid").values()]
    _wait_for(lambda: not any(_is_alive(pid) for pid in pids), "ranks are gone")


def test_the_previous_handlers_are_restored() -> None:
    before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert run_ranks(["-c", "pass"], num_ranks=1) == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
