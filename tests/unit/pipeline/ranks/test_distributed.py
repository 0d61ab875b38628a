import faulthandler
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed

from pipeline.ranks.distributed import (
    PortInUseError,
    RendezvousError,
    _store,
    abandon_process_group,
    start_process_group,
    stop_process_group,
)
from pipeline.ranks.environment import Ranks
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.ports import free_port


def listening(port: int) -> list[str]:
    """Return the addresses, as the kernel writes them, at which this machine listens on a port."""
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    return [line[1].split(":")[0] for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")]


def test_the_ranks_of_one_machine_meet_where_no_other_one_can_connect() -> None:
    ranks = Ranks.from_environment({})
    store = _store(ranks, timedelta(seconds=10))
    assert listening(ranks.master_port) == ["0100007F"]
    client = _store(Ranks.from_environment(launched(1, ranks.master_port)), timedelta(seconds=10))
    client.set("key", "value")
    assert store.get("key") == b"value"


def launched(rank: int, port: int) -> dict[str, str]:
    numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    return numbers | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def test_a_port_that_is_taken_is_reported() -> None:
    ranks = Ranks.from_environment({})
    store = _store(ranks, timedelta(seconds=10))
    with pytest.raises(RendezvousError, match=str(ranks.master_port)):
        start_process_group(ranks, timeout_seconds=10)
    del store


def test_a_port_that_somebody_chose_and_another_program_uses_is_wrong_usage() -> None:
    ranks = Ranks.from_environment({})
    store = _store(ranks, timedelta(seconds=10))
    with pytest.raises(PortInUseError, match=str(ranks.master_port)) as caught:
        start_process_group(Ranks.from_environment(launched(0, ranks.master_port)), timeout_seconds=10)
    assert caught.value.exit_code == ExitCode.USAGE
    del store


def test_what_torchrun_has_left_behind_does_not_keep_a_single_rank_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth-that-is-not-here")
    start_process_group(Ranks.from_environment(), timeout_seconds=10)
    stop_process_group()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_an_abandoned_job_is_left_without_waiting() -> None:
    start_process_group(Ranks.from_environment({}), timeout_seconds=60)
    torch.distributed.new_group([0])
    try:
        abandon_process_group()
        assert not torch.distributed.is_initialized()
        # There is nothing left to leave.
        abandon_process_group()
    finally:
        # It would end the tests.
        faulthandler.cancel_dump_traceback_later()
