"""Tokenization on a real local Ray."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.documents import TextFolder
from data_prep.errors import DataError
from data_prep.run import prepare
from data_prep.tasks import ShardTask, TaskReport
from tests.support.corpus import build_request, prepare_here, train_small_tokenizer, write_corpus

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(240)]

MARK = "MEGAPONDER_TEST_MARK"


@pytest.fixture
def source(tmp_path: Path) -> TextFolder:
    return write_corpus(tmp_path / "text")


@pytest.fixture
def tokenizer(source: TextFolder, tmp_path: Path) -> Path:
    return train_small_tokenizer(source, tmp_path / "tokenizer.model")


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A word in the environment of this test, by which the processes it starts are found."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    return mark


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def processes(mark: str, name: str = "") -> list[str]:
    """Command lines with ``name`` in them of the other processes that carry the mark."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append((int(folder.name), (folder / "cmdline").read_bytes().decode()))
        except OSError:
            continue  # the process ended while it was looked at
    return [command for pid, command in found if pid != os.getpid() and command and name in command]


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not reached within {seconds} seconds"
        time.sleep(0.05)


def crash(task: ShardTask) -> TaskReport:
    os._exit(1)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_ray_workers_writes_the_bytes_of_one_process(
    source: TextFolder, tokenizer: Path, tmp_path: Path, mark: str, workers: int
) -> None:
    expected = prepare_here(source, tokenizer, tmp_path / "here")
    manifest = prepare(build_request(source, tokenizer, tmp_path / "ray", workers=workers))
    assert manifest == expected
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "here")
    wait_until(lambda: processes(mark) == [], seconds=20.0)


def test_an_interrupted_command_leaves_no_process_and_goes_on_where_it_was(
    source: TextFolder, tokenizer: Path, tmp_path: Path, mark: str
) -> None:
    prepare_here(source, tokenizer, tmp_path / "here")
    request = build_request(source, tokenizer, tmp_path / "ray", workers=1)
    program = (
        "import sys; from data_prep.run import *; prepare(PrepareRequest.model_validate_json(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, request.model_dump_json()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        wait_until(lambda: processes(mark, "raylet") != [])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    wait_until(lambda: processes(mark) == [], seconds=20.0)
    prepare(request.model_copy(update={"workers": 0}))
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "here")


def test_a_worker_that_keeps_dying_ends_the_command_with_a_cure(
    source: TextFolder, tokenizer: Path, tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.ray_executor.tokenize_shard", crash)
    with pytest.raises(DataError, match=r"died 3 times.*use fewer workers or smaller shards"):
        prepare(build_request(source, tokenizer, tmp_path / "ray", workers=1))
    wait_until(lambda: processes(mark) == [], seconds=20.0)
