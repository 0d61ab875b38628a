import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.shared import folder_lock as module
from pipeline.shared.errors import DataError
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.folder_lock import (
    LOCK_NAME,
    FolderInUseError,
    Owner,
    folder_lock,
    output_lock,
    read_owner,
)
from pipeline.shared.process_identity import ProcessIdentity
from tests.support.commands import REPOSITORY

HOLD = """
import pathlib, sys
from pipeline.shared.folder_lock import folder_lock
with folder_lock(pathlib.Path(sys.argv[1]), "train"):
    print("held", flush=True)
    input()
"""


def lock_by(folder: Path, **changes: object) -> Path:
    """Write the lock of an owner that never releases it: this process, but for some changes."""
    values = asdict(ProcessIdentity.of_this_process())
    values |= {"job": None, "restart": 0, "work": "train", "token": "0123", **changes}
    path = folder / LOCK_NAME
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def as_another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes this process forget that it holds locks."""
    return lambda: monkeypatch.delenv("MEGAPONDER_LOCK_TOKENS")


@pytest.fixture
def without_locks_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_lock_file", lambda _descriptor: None)
    monkeypatch.setattr(module, "_SETTLE_SECONDS", 0.01)


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)


@pytest.mark.parametrize("lock", [folder_lock, output_lock])
def test_a_second_owner_is_refused_and_hears_who_the_first_is(
    tmp_path: Path,
    lock: Callable[[Path, str], AbstractContextManager[None]],
    as_another_process: Callable[[], None],
) -> None:
    folder = tmp_path / "runs" / "one"
    with lock(folder, "train"):
        as_another_process()
        with pytest.raises(FolderInUseError) as caught, lock(folder, "convert"):
            pass
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.owner is not None
    assert (caught.value.owner.pid, caught.value.owner.work) == (os.getpid(), "train")
    for word in (str(folder), str(os.getpid()), os.uname().nodename):
        assert word in str(caught.value)
    with lock(folder, "convert"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for lock in (folder_lock, output_lock):
        for folder in (loop, loop / "inside"):
            with pytest.raises(DataError), lock(folder):
                pass
    assert list(tmp_path.iterdir()) == [loop]


def test_what_the_owner_starts_is_part_of_it(tmp_path: Path) -> None:
    with folder_lock(tmp_path), folder_lock(tmp_path):
        code = HOLD.replace("input()", "")
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, check=True)
        assert read_owner(tmp_path) is not None
    assert read_owner(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_an_owner_that_was_killed_keeps_nobody_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(FolderInUseError, match=str(owner.pid)), folder_lock(tmp_path):
            pass
        owner.kill()
        # It is gone, but nobody has asked for its exit code yet.
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
        with folder_lock(tmp_path):
            (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
            assert str(owner.pid) in warning.getMessage()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with folder_lock(tmp_path):
        child = os.fork()
        if child == 0:
            os.read(reader, 1)
            os._exit(0)
    with folder_lock(tmp_path):
        os.write(writer, b"1")
        assert os.waitpid(child, 0)[1] == 0


def test_an_owner_on_another_machine_lives_while_its_heartbeat_changes(tmp_path: Path) -> None:
    path = lock_by(tmp_path, host="elsewhere", boot="another")
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.02):
            os.utime(path)

    beats = threading.Thread(target=beat)
    beats.start()
    with pytest.raises(FolderInUseError, match="elsewhere"), folder_lock(tmp_path):
        pass
    stop.set()
    beats.join()
    # Clocks do not count: its last heartbeat seems to come from the future.
    os.utime(path, (time.time() + 600, time.time() + 600))
    with folder_lock(tmp_path):
        owner = read_owner(tmp_path)
        assert owner is not None
        assert owner.host != "elsewhere"


@pytest.mark.parametrize("changes", [{"boot": "another"}, {"pid_namespace": "pid:[1]"}])
@pytest.mark.usefixtures("without_locks_of_the_kernel")
def test_an_owner_that_cannot_be_seen_is_gone_after_a_long_silence(
    tmp_path: Path, changes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 60.0)
    path = lock_by(tmp_path, **changes)
    os.utime(path, (0, 0))
    with folder_lock(tmp_path):
        pass


def test_an_earlier_start_of_the_same_job_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 60.0)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    lock_by(tmp_path, host="elsewhere", boot="another", job="slurm:17", restart=2)
    with folder_lock(tmp_path):
        owner = read_owner(tmp_path)
        assert owner is not None
        assert (owner.job, owner.restart) == ("slurm:17", 3)


@pytest.mark.usefixtures("without_locks_of_the_kernel")
def test_without_locks_of_the_kernel_the_process_itself_is_looked_up(
    tmp_path: Path, as_another_process: Callable[[], None]
) -> None:
    with folder_lock(tmp_path), folder_lock(tmp_path):
        as_another_process()
        with pytest.raises(FolderInUseError), folder_lock(tmp_path):
            pass
    # Another process that has got its number.
    lock_by(tmp_path, start_ticks=1)
    with folder_lock(tmp_path):
        pass


def test_an_owner_that_was_taken_for_dead_ends(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        f"import pipeline.shared.folder_lock as m; m._BEAT_SECONDS = 0.02\n{HOLD}",
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, str(tmp_path)], cwd=REPOSITORY, stdin=pipe, stdout=pipe) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        lock_by(tmp_path, host="elsewhere", boot="another")
        assert owner.wait(20) == ExitCode.DO_NOT_REQUEUE


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\0", b"[]", b"{", b"[" * 4000, b'{"pid": 1}', b"9" * 6000, json.dumps({"pid": -1}).encode()],
)
def test_a_lock_that_names_nobody_is_nobodys(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_NAME).write_bytes(content)
    assert read_owner(tmp_path) is None
    with folder_lock(tmp_path):
        assert isinstance(read_owner(tmp_path), Owner)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("target")])
def test_what_is_no_lock_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / LOCK_NAME)
    with pytest.raises(DataError, match=str(tmp_path / LOCK_NAME)), folder_lock(tmp_path):
        pass
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["file", "file/below", "n" * 300])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError), folder_lock(tmp_path / name):
        pass


def test_escape_sequences_of_a_lock_do_not_reach_the_terminal() -> None:
    values = asdict(ProcessIdentity.of_this_process()) | {"host": "\x1b]0;title\x07", "token": ""}
    assert str(Owner(**values, job=None, restart=0, work="\r\n")).isprintable()


def test_a_folder_that_was_filled_or_renamed_is_kept(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "content").touch()
        (tmp_path / "a").rename(tmp_path / "c")
    assert (tmp_path / "c" / "b" / "content").exists()
    with folder_lock(tmp_path / "c" / "b"):
        pass
