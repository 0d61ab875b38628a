"""What is asked of a running Ray and its machines before any work."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.on_ray.cluster import describe_lack
from data_prep.on_ray.node_check import NodeReport, Probe, check_node, installed_programs
from data_prep.run import prepare
from pipeline.shared.errors import DataError
from tests.support.corpus import build_request
from tests.unit.data_prep.conftest import Prepared


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    (tmp_path / "input").write_text("text")
    (tmp_path / "probe").write_text("content")
    return Probe(file=tmp_path / "probe", content="content", input_location=str(tmp_path / "input"))


@pytest.fixture
def other_server() -> Iterator[str]:
    """A server that speaks, but is no Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        answer = b"220 mail server\r\n"
        threading.Thread(target=lambda: server.accept()[0].sendall(answer), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_machine_that_sees_the_files_lacks_nothing_and_keeps_nothing(probe: Probe) -> None:
    report = check_node(probe)
    assert describe_lack(report, installed_programs()) is None
    assert sorted(path.name for path in probe.file.parent.iterdir()) == ["input", "probe"]


def test_a_machine_without_the_output_or_the_input_says_so(probe: Probe, tmp_path: Path) -> None:
    elsewhere = Probe(file=tmp_path / "absent" / "probe", content="content", input_location="s3://bucket/a")
    assert str(elsewhere.file) in str(check_node(elsewhere).finding)
    stale = Probe(file=probe.file, content="newer", input_location=probe.input_location)
    assert str(stale.file) in str(check_node(stale).finding)
    (tmp_path / "input").unlink()
    assert f"{tmp_path}/input" in str(check_node(probe).finding)


def test_other_programs_are_named_with_both_versions() -> None:
    here = {"python": "3.11.7", "numpy": "2.4.6"}
    report = NodeReport(host="node7", programs={"python": "3.11.7", "numpy": "1.0"}, finding=None)
    assert describe_lack(report, here) == "node7 has numpy 1.0 (here 2.4.6)"


def test_an_address_that_is_no_ray_is_refused_at_once(
    prepared: Prepared, tmp_path: Path, other_server: str
) -> None:
    request = build_request(prepared.source, prepared.tokenizer, tmp_path / "tokens", workers=1)
    for address in ("127.0.0.1:1", "nonsense", other_server):
        with pytest.raises(DataError, match=rf"--ray-address .*{address}"):
            prepare(request.model_copy(update={"ray_address": address}))


def test_no_workers_on_a_running_ray_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    request = build_request(prepared.source, prepared.tokenizer, tmp_path, ray_address="127.0.0.1:1")
    with pytest.raises(DataError, match="--workers"):
        prepare(request)
