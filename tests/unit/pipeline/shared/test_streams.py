"""Each case runs in a process of its own, because it closes the streams of that process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[4]
PROLOGUE = """
import os, sys
from pathlib import Path
from pipeline.shared.console import say
from pipeline.shared.streams import OutputError, keep_log_in, protect_standard_streams
"""


def start(body: str, **streams: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", PROLOGUE + body]
    return subprocess.Popen(command, cwd=REPOSITORY, **streams)  # type: ignore[call-overload, no-any-return]


def closed_pipe() -> int:
    """Return the writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_output_that_nobody_reads_is_dropped_and_the_work_is_done(tmp_path: Path) -> None:
    body = f"""
protect_standard_streams()
for number in range(3):
    say("result")
    say("log", err=True)
    os.write(2, b"a library")
Path({str(tmp_path / "done")!r}).write_text("")
"""
    writer = closed_pipe()
    assert start(body, stdout=writer, stderr=writer).wait(60) == 0
    assert (tmp_path / "done").exists()


def test_a_log_that_nobody_reads_goes_on_in_a_file(tmp_path: Path) -> None:
    log = tmp_path / "run" / "stderr.log"
    body = f"""
protect_standard_streams()
keep_log_in(Path({str(log)!r}))
say("before", err=True)
Path({str(log.parent)!r}).mkdir()
say("first", err=True)
os.write(2, b"library\\n")
say("last", err=True)
"""
    assert start(body, stderr=closed_pipe()).wait(60) == 0
    assert log.read_text().split() == ["before", "first", "library", "last"]


def test_a_log_on_a_full_disk_is_dropped() -> None:
    with Path("/dev/full").open("wb") as full:
        process = start("protect_standard_streams()\nsay('x', err=True)\nsay('done')", stderr=full, stdout=-1)
        assert process.communicate(timeout=60)[0] == b"done\n"
    assert process.returncode == 0


def test_results_on_a_full_disk_are_an_error() -> None:
    body = """
protect_standard_streams()
try:
    say("result")
except OutputError:
    sys.exit(7)
"""
    with Path("/dev/full").open("wb") as full:
        process = start(body, stdout=full, stderr=-1)
        assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 7


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_file_does_not_take_the_place_of_a_missing_stream(tmp_path: Path, closed: str) -> None:
    body = f"""
protect_standard_streams()
with open({str(tmp_path / "file")!r}, "wb") as file:
    assert file.fileno() > 2
    say("out"); say("err", err=True); os.write(1, b"x"); os.write(2, b"x")
    assert sys.stdin.read() == ""
    assert os.system("echo child; echo child >&2; cat") == 0
"""
    script = tmp_path / "script.py"
    script.write_text(PROLOGUE + body)
    command = f"exec {sys.executable} {script} {closed}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        ["sh", "-c", command], env=environment, stdin=subprocess.DEVNULL, capture_output=True
    )
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_the_encoding_lacks_is_escaped(encoding: str) -> None:
    command = [sys.executable, "-c", PROLOGUE + "protect_standard_streams()\nsay('caf\\u00e9 \\u4e16')"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True)
    assert finished.returncode == 0, finished.stderr
    expected = "caf\u00e9 \u4e16\n".encode(encoding, "backslashreplace")
    assert finished.stdout == expected


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = start("protect_standard_streams()\nsay('x' * 1_000_000)", stdout=writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as output:
        assert len(output.read()) == 1_000_001
    assert process.wait(60) == 0
