import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.shared import ports
from pipeline.shared.ports import free_port, free_ports


def test_ports_differ_and_can_be_bound() -> None:
    found = free_ports(5)
    assert len(set(found)) == 5
    for port in (*found, free_port()):
        with socket.socket() as server:
            server.bind(("", port))


def test_no_outgoing_connection_can_take_them() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not any(low <= port <= high for port in free_ports(200))


@pytest.mark.parametrize("text", ["1 65535", "nonsense", None])
def test_without_room_outside_that_range_any_free_port_is_taken(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / "range"
    if text is not None:
        setting.write_text(text)
    monkeypatch.setattr(ports, "_EPHEMERAL_RANGE", setting)
    assert len(set(free_ports(5))) == 5


def test_ports_in_use_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tmp_path / "range"
    setting.write_text("10002 65535")
    monkeypatch.setattr(ports, "_EPHEMERAL_RANGE", setting)
    with ExitStack() as servers:
        for port in (10_000, 10_001):
            servers.enter_context(socket.socket()).bind(("", port))
        assert free_port() > 10_001
