import socket

from pipeline.shared.ports import free_port, free_ports


def test_ports_are_different_and_can_be_bound() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in (*ports, free_port()):
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))
