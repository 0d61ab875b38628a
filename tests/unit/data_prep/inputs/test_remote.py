"""Web servers that are dead, silent, slow or list folders; and the secrets of URLs."""

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from data_prep.inputs import remote
from data_prep.inputs.documents import TextFiles
from data_prep.inputs.finding import find_files
from data_prep.inputs.ranges import full_range
from data_prep.inputs.records import Document, read_records
from data_prep.inputs.urls import mask_url
from data_prep.manifest import ReadSettings
from data_prep.run import prepare
from pipeline.shared.errors import DataError
from tests.support.corpus import build_request
from tests.unit.data_prep.conftest import Prepared


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "web" / "sub").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "web" / "sub" / name).write_text(f'{{"text": "{name}"}}\n' * 20)
    handler = partial(_Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_url_of_a_folder_is_read_as_a_folder(web: str) -> None:
    files = find_files(TextFiles(inputs=(f"http://{web}/sub/",)))
    assert [file.path for file in files] == ["a.jsonl", "b.jsonl"]
    records = [*read_records(full_range(files[0]), ReadSettings())]
    assert [record.text for record in records if isinstance(record, Document)] == ["a.jsonl"] * 20


def test_secrets_of_a_url_are_not_stored_and_may_change(web: str, prepared: Prepared, tmp_path: Path) -> None:
    manifests = []
    for signature in ("alpha", "omega"):
        places = [f"http://name:pass-{signature}@{web}/sub/{n}.jsonl?sig={signature}" for n in "ab"]
        source = TextFiles(inputs=tuple(places))
        request = build_request(prepared.source, prepared.tokenizer, tmp_path / "shards")
        manifests.append(prepare(request.model_copy(update={"source": source})))
    assert manifests[0] == manifests[1]
    stored = b"".join(path.read_bytes() for path in (tmp_path / "shards").iterdir())
    assert not any(word in stored for word in (b"alpha", b"omega", b"pass-"))


def test_only_secrets_are_masked() -> None:
    assert mask_url("s3://key:secret@bucket/a.jsonl") == "s3://***@bucket/a.jsonl"
    assert mask_url("open https://h/a.gz?X-Sig=1&b=2 failed") == "open https://h/a.gz?*** failed"
    assert mask_url("a/b?c.txt, me@host") == "a/b?c.txt, me@host"


def test_a_missing_file_and_a_dead_server_are_told_apart(web: str) -> None:
    with pytest.raises(DataError, match="must exist"):
        find_files(TextFiles(inputs=(f"http://{web}/absent.jsonl",)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DataError, match="must be readable"):
        find_files(TextFiles(inputs=(f"http://127.0.0.1:{port}/a.jsonl?sig=secret",)))


@contextlib.contextmanager
def _dripping(head: bytes) -> Iterator[int]:
    """A server that accepts, sends its head at once, and then a byte every tenth of a second."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stopped = threading.Event()

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                is_question = connection.recv(4096).startswith(b"HEAD")
                connection.sendall(head)
                if is_question and head.endswith(b"\r\n\r\n"):
                    return
                while head and not stopped.wait(0.1):
                    connection.sendall(b"x")
                stopped.wait()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        stopped.set()


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: "])
def test_a_silent_or_slow_answer_ends_the_wait(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr(remote.ask, "__kwdefaults__", {"seconds": 0.3})
    started = time.monotonic()
    with _dripping(head) as port, pytest.raises(DataError, match="within"):
        find_files(TextFiles(inputs=(f"http://127.0.0.1:{port}/a.jsonl",)))
    assert time.monotonic() - started < 10


def test_a_file_that_drips_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "READ_SECONDS", 0.4)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: text/plain\r\n\r\n"
    with _dripping(head) as port:
        file = remote.RemoteFile(f"http://127.0.0.1:{port}/a.jsonl")
        with pytest.raises(DataError, match="within"):
            file.read(1000)
