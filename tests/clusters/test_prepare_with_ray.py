"""Tokenization on a real Ray: the bytes of one process, whatever is killed on the way."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import psutil
import pytest
import ray

from data_prep.inputs.documents import TextFolder
from data_prep.journal import JOURNAL_NAME
from data_prep.manifest import MANIFEST_NAME
from data_prep.on_ray.local import local_ray
from data_prep.preparation import PARTS_FOLDER, PrepareRequest
from data_prep.run import prepare
from data_prep.tasks import ShardTask, TaskReport
from pipeline.shared.errors import DataError
from tests.support.corpus import build_request, prepare_here, train_small_tokenizer, write_corpus
from tests.support.ray_cluster import ray_head
from tests.support.small_disk import make_room, small_disk

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("ray"), pytest.mark.timeout(240)]

MARK = "MEGAPONDER_TEST_MARK"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> TextFolder:
    return write_corpus(tmp_path / "text")


@pytest.fixture
def long_source(tmp_path: Path) -> TextFolder:
    """Enough shards that a command is killed while some are made and others are not."""
    return write_corpus(tmp_path / "long", num_documents=300)


@pytest.fixture
def tokenizer(source: TextFolder, tmp_path: Path) -> Path:
    return train_small_tokenizer(source, tmp_path / "tokenizer.model")


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A word in the environment of this test, by which the processes it starts are found."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    return mark


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for Ray's files, which a killed command leaves behind; its path is short, as Ray asks."""
    with tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def cluster(ray_folder: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a Ray that runs already, with the programs of this repository."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    with ray_head(ray_folder) as address:
        yield address


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def processes(mark: str, name: str = "") -> list[int]:
    """Ids of the other processes that carry the mark and have ``name`` in their command lines."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append((int(folder.name), (folder / "cmdline").read_bytes().decode()))
        except OSError:
            continue  # the process ended while it was looked at
    return [pid for pid, command in found if pid != os.getpid() and command and name in command]


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended with another one


def start(request: PrepareRequest) -> subprocess.Popen[bytes]:
    program = (
        "import sys; from data_prep.run import *; prepare(PrepareRequest.model_validate_json(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, request.model_dump_json()]
    return subprocess.Popen(command, stderr=subprocess.PIPE, cwd=REPOSITORY)


def num_finished(folder: Path) -> int:
    """Shards that are entered in the journal."""
    journal = folder / JOURNAL_NAME
    return max(len(journal.read_bytes().splitlines()) - 1, 0) if journal.exists() else 0


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not reached within {seconds} seconds"
        time.sleep(0.01)


def listeners(pids: list[int]) -> dict[str, set[str]]:
    """Addresses at which processes accept TCP connections, by the names of their programs."""
    found: dict[str, set[str]] = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            sockets = process.net_connections("tcp")
            name = process.name()
        except psutil.NoSuchProcess:
            continue  # the process ended while it was looked at
        addresses = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
        found[name] = found.get(name, set()) | addresses
    return found


def is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    # such as ::ffff:127.0.0.1, of a socket that accepts IPv4 by the interface of IPv6
    return ((isinstance(parsed, IPv6Address) and parsed.ipv4_mapped) or parsed).is_loopback


def own_id() -> int:
    return os.getpid()


def crash(task: ShardTask) -> TaskReport:
    os._exit(1)


def test_ray_workers_write_the_bytes_of_one_process(
    source: TextFolder, tokenizer: Path, tmp_path: Path, mark: str
) -> None:
    expected = prepare_here(source, tokenizer, tmp_path / "here")
    manifest = prepare(build_request(source, tokenizer, tmp_path / "ray", workers=2))
    assert manifest == expected
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "here")
    wait_until(lambda: processes(mark) == [], seconds=60.0)


def test_only_this_machine_can_reach_the_ray_that_is_started(ray_folder: Path, mark: str) -> None:
    with local_ray(1):
        ray.get(ray.remote(own_id).remote(), timeout=60)
        pids = [os.getpid(), *processes(mark)]
        # the agents of Ray begin to listen after its start
        wait_until(lambda: len(listeners(pids)) >= 4 and listeners(pids)["raylet"] != set())
        time.sleep(5.0)
        found = listeners([os.getpid(), *processes(mark)])
    assert found["gcs_server"] != set()
    assert found["raylet"] != set()
    addresses = set().union(*found.values())
    assert [address for address in addresses if not is_loopback(address)] == []
    wait_until(lambda: processes(mark) == [], seconds=60.0)


def test_an_interrupted_command_leaves_no_process_and_goes_on_where_it_was(
    source: TextFolder, tokenizer: Path, tmp_path: Path, mark: str
) -> None:
    prepare_here(source, tokenizer, tmp_path / "here")
    request = build_request(source, tokenizer, tmp_path / "ray", workers=1)
    with start(request) as process:
        wait_until(lambda: processes(mark, "raylet") != [])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    wait_until(lambda: processes(mark) == [], seconds=60.0)
    prepare(request.model_copy(update={"workers": 0}))
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "here")


@pytest.mark.parametrize(("stored_as", "seed"), [("webdataset", 1), ("megatron", 2)])
def test_a_killed_command_leaves_no_process_and_loses_no_finished_shard(
    long_source: TextFolder,
    tokenizer: Path,
    tmp_path: Path,
    mark: str,
    ray_folder: Path,
    stored_as: str,
    seed: int,
) -> None:
    prepare_here(long_source, tokenizer, tmp_path / "here", stored_as=stored_as)
    request = build_request(long_source, tokenizer, tmp_path / "ray", workers=1, stored_as=stored_as)
    shards = tmp_path / "ray" / (PARTS_FOLDER if stored_as == "megatron" else "")
    num_shards = random.Random(seed).randrange(1, 60)
    with start(request) as process:
        wait_until(lambda: num_finished(shards) >= num_shards)
        process.kill()
        process.communicate(timeout=60)
    # a worker may be writing a shard still; the lock went with the command, and so nothing waits for it
    assert not (tmp_path / "ray" / MANIFEST_NAME).exists()
    assert len(list(shards.glob("*.tar"))) >= num_shards
    prepare(request.model_copy(update={"workers": 0}))
    wait_until(lambda: processes(mark) == [], seconds=120.0)
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "here")


def test_killed_workers_change_nothing(
    long_source: TextFolder, tokenizer: Path, tmp_path: Path, mark: str, ray_folder: Path
) -> None:
    prepare_here(long_source, tokenizer, tmp_path / "here")
    moments = sorted(random.Random(3).sample(range(1, 60), 2))
    with start(build_request(long_source, tokenizer, tmp_path / "ray", workers=2)) as process:
        for moment in moments:
            wait_until(lambda least=moment: num_finished(tmp_path / "ray") >= least)  # type: ignore[misc]
            # the agents of Ray have such titles, too, but without them it ends itself
            kill(processes(mark, "ray::tokenize_shard") + processes(mark, "ray::IDLE"))
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "here")


def test_a_killed_ray_ends_the_command_and_a_second_one_finishes_the_work(
    long_source: TextFolder, tokenizer: Path, tmp_path: Path, mark: str, ray_folder: Path
) -> None:
    prepare_here(long_source, tokenizer, tmp_path / "here")
    request = build_request(long_source, tokenizer, tmp_path / "ray", workers=2)
    moment = random.Random(4).randrange(1, 60)
    with start(request) as process:
        wait_until(lambda: num_finished(tmp_path / "ray") >= moment)
        kill([pid for pid in processes(mark) if pid != process.pid])
        _, errors = process.communicate(timeout=120)
    assert "Ray must run until the work is done" in errors.decode()
    assert not (tmp_path / "ray" / MANIFEST_NAME).exists()
    wait_until(lambda: processes(mark) == [], seconds=60.0)
    prepare(request.model_copy(update={"workers": 0}))
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "here")


def test_a_ray_that_runs_already_does_the_work_goes_on_running_and_may_be_killed(
    long_source: TextFolder, tokenizer: Path, tmp_path: Path, mark: str, cluster: str
) -> None:
    expected = prepare_here(long_source, tokenizer, tmp_path / "here")
    fields = {"workers": 2, "ray_address": cluster}
    assert prepare(build_request(long_source, tokenizer, tmp_path / "whole", **fields)) == expected
    assert folder_bytes(tmp_path / "whole") == folder_bytes(tmp_path / "here")
    assert processes(mark, "gcs_server") != []
    assert processes(mark, "raylet") != []

    request = build_request(long_source, tokenizer, tmp_path / "killed", **fields)
    with start(request) as process:
        wait_until(lambda: num_finished(tmp_path / "killed") >= random.Random(5).randrange(1, 60))
        kill([pid for pid in processes(mark) if pid != process.pid])
        _, errors = process.communicate(timeout=120)
    assert "Ray must run until the work is done" in errors.decode()
    prepare(request.model_copy(update={"workers": 0, "ray_address": None}))
    assert folder_bytes(tmp_path / "killed") == folder_bytes(tmp_path / "here")


def test_a_worker_that_keeps_dying_ends_the_command_with_a_cure(
    source: TextFolder, tokenizer: Path, tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.on_ray.executor.tokenize_shard", crash)
    with pytest.raises(DataError, match=r"died 3 times.*use fewer workers or smaller shards"):
        prepare(build_request(source, tokenizer, tmp_path / "ray", workers=1))
    wait_until(lambda: processes(mark) == [], seconds=60.0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for some shards but not for all."""
    with small_disk(tmp_path / "disk", size="400k") as folder:
        yield folder


@pytest.mark.parametrize("stored_as", ["webdataset", "megatron"])
def test_a_full_disk_is_reported_and_the_work_resumes_when_there_is_space(
    long_source: TextFolder, tokenizer: Path, tmp_path: Path, disk: Path, stored_as: str
) -> None:
    prepare_here(long_source, tokenizer, tmp_path / "here", stored_as=stored_as)
    workers = 1 if stored_as == "webdataset" else 0
    request = build_request(long_source, tokenizer, disk / "tokens", workers=workers, stored_as=stored_as)
    with pytest.raises(DataError, match=str(disk / "tokens")):
        prepare(request)
    shards = disk / "tokens" / (PARTS_FOLDER if stored_as == "megatron" else "")
    assert num_finished(shards) > 5
    assert not [path.name for path in shards.iterdir() if ".tmp-" in path.name]
    make_room(disk)
    prepare(request.model_copy(update={"workers": 0}))
    assert folder_bytes(disk / "tokens") == folder_bytes(tmp_path / "here")
