"""Servers that are not there, say nothing, or say it slowly; and a proxy that is in the way."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import ray

from cluster.on_ray import jobs_api
from cluster.on_ray.jobs_api import UnreachableRayError, ask


class _Dashboard(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        version = {"version": "4", "ray_version": ray.__version__, "ray_commit": ray.__commit__}
        body = json.dumps({**version, "session_name": "", "python_version": ""}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Print nothing."""


def test_the_cluster_is_asked_directly_and_not_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "elsewhere")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    server = HTTPServer(("127.0.0.1", 0), _Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert ask(f"http://127.0.0.1:{server.server_port}", lambda _client: 5) == 5
    server.shutdown()
    assert jobs_api.os.environ["no_proxy"] == "elsewhere"


@contextmanager
def serving(words: list[bytes]) -> Iterator[str]:
    """Accept connections and send some words, half a limit apart; then stay silent."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
                for word in words:
                    connection.sendall(word)
                    time.sleep(0.1)
                kept.append(connection)
            except OSError:
                return

    kept: list[socket.socket] = []
    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()
    for connection in kept:
        connection.close()


@pytest.mark.parametrize(
    "words", [[], [b"HTTP/1.1 200 OK\r\n", b"Content-Length: 100\r\n\r\n", *[b"x"] * 50]]
)
def test_a_server_that_never_finishes_is_given_up(
    monkeypatch: pytest.MonkeyPatch, words: list[bytes]
) -> None:
    monkeypatch.setattr(jobs_api, "RESPONSE_SECONDS", 0.3)
    monkeypatch.setattr(jobs_api, "_LONGEST_RESPONSE_SECONDS", 1.0)
    with serving(words) as address, pytest.raises(UnreachableRayError):
        ask(address, lambda client: client.list_jobs())
