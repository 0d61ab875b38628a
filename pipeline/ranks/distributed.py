"""The process group of a job."""

import errno
import faulthandler
import logging
import os
import socket
import sys
from datetime import timedelta

import torch.distributed
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # both are public
from torch.distributed.distributed_c10d import Store

from megatron_ext.device import choose_device, process_group_backend, select_device
from pipeline.ranks.environment import Ranks
from pipeline.ranks.releases import check_megatron_release
from pipeline.shared.bounded import within
from pipeline.shared.errors import UserError

__all__ = [
    "DeviceError",
    "PortInUseError",
    "RendezvousError",
    "abandon_process_group",
    "start_process_group",
    "stop_process_group",
]

logger = logging.getLogger(__name__)

_LOOPBACK = "lo"
# For aborting NCCL after an error, and then for leaving the process.
_ABORT_SECONDS = 20.0
_LEAVE_SECONDS = 60.0


class RendezvousError(RuntimeError):
    """Not all ranks of the job have connected."""


class PortInUseError(UserError):
    """The port at which the ranks are to meet belongs to another program; waiting does not help."""


class DeviceError(UserError):
    """The ranks cannot have the devices that they ask for."""


def start_process_group(ranks: Ranks, *, timeout_seconds: int, device: str = "auto") -> None:
    """Choose this rank's device and join the job.

    Args:
        ranks: this process among the ranks; a limit for the rendezvous that the launcher set wins.
        timeout_seconds: limit of every collective, and of the rendezvous if the launcher set none.
        device: parallel.device: auto, cpu or cuda.
    Raises:
        ReleaseError: Megatron-Core is of a release that cannot be used.
        DeviceError: there is no such device, or there are fewer than ranks.
        RendezvousError: some ranks did not connect in time, or rank 0 cannot be reached.
        PortInUseError: on rank 0, if the port that somebody chose is not free.
    """
    check_megatron_release()
    try:
        choose_device(device)
        select_device(ranks.local_rank, ranks.world_size if ranks.is_on_one_machine else 1)
    except ValueError as error:
        raise DeviceError(str(error)) from error
    if ranks.is_on_one_machine:
        _use_loopback()
    store = _meet(ranks, ranks.start_timeout_seconds or timeout_seconds)
    store.set_timeout(timedelta(seconds=timeout_seconds))
    torch.distributed.init_process_group(
        backend=process_group_backend(),
        store=store,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )


def _meet(ranks: Ranks, limit_seconds: int) -> Store:
    """Wait for the other ranks at the address of rank 0."""
    try:
        return _store(ranks, timedelta(seconds=limit_seconds))
    except (DistError, OSError) as error:
        # A port that we chose was free a moment ago, and the next start chooses another one.
        is_given = ranks.is_launched and ranks.start_timeout_seconds is None
        if is_given and ranks.rank == 0 and ranks.hosts_store and _is_in_use(error):
            raise PortInUseError(
                f"port {ranks.master_port} of this machine must be free for the ranks to meet at, but is in "
                "use by another program; choose another one (MASTER_PORT, or --master-port of torchrun), or "
                f"end that program (see `ss -ltnp 'sport = :{ranks.master_port}'`)"
            ) from error
        raise RendezvousError(
            f"all {ranks.world_size} ranks must meet at {ranks.master_address}:{ranks.master_port} within "
            f"{limit_seconds} s, but for rank {ranks.rank} they did not ({str(error).splitlines()[0]}); look "
            "into the logs of the other ranks: one did not start, has ended, or cannot reach that address"
        ) from error


def _is_in_use(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.EADDRINUSE
    # torch has no number for it.
    return "EADDRINUSE" in str(error) or "address already in use" in str(error).lower()


def _store(ranks: Ranks, limit: timedelta) -> Store:
    is_host = ranks.rank == 0 and ranks.hosts_store
    # A server of torch's own listens on every interface of the machine.
    listening = _listen(ranks) if is_host and ranks.is_on_one_machine else None
    return TCPStore(
        ranks.master_address,
        ranks.master_port,
        world_size=ranks.world_size,
        is_master=is_host,
        timeout=limit,
        # It closes the socket.
        master_listen_fd=None if listening is None else listening.detach(),
    )


def _listen(ranks: Ranks) -> socket.socket:
    """Return a socket at the address of the first rank, which other machines cannot reach."""
    family = socket.AF_INET6 if ":" in ranks.master_address else socket.AF_INET
    return socket.create_server(
        (ranks.master_address, ranks.master_port), family=family, backlog=max(ranks.world_size, 128)
    )


def _use_loopback() -> None:
    """Let gloo connect the ranks of one machine by loopback, whatever the machine's name resolves to."""
    if _LOOPBACK in [name for _, name in socket.if_nameindex()]:
        os.environ["GLOO_SOCKET_IFNAME"] = _LOOPBACK


def abandon_process_group() -> None:
    """Leave the job after an error of this rank, without waiting for others.

    For ranks on CUDA: they may be in a collective with this rank, for whose kernel destroying a process group
    would wait. So it is aborted; whatever hangs all the same ends with the process after a while.
    """
    if not torch.distributed.is_initialized():
        return
    if sys.__stderr__ is not None:
        # In C, so that it also ends a process whose interpreter is already being taken down.
        faulthandler.dump_traceback_later(_LEAVE_SECONDS, exit=True, file=sys.__stderr__)
    if within(_ABORT_SECONDS, _abort) is None:
        logger.warning("NCCL could not be aborted within %.0f s; this rank leaves without it", _ABORT_SECONDS)


def _abort() -> bool:
    try:
        torch.distributed.distributed_c10d._abort_process_group()
    except (RuntimeError, AttributeError) as error:
        # A release of torch without it, or a backend beside NCCL that cannot be aborted.
        logger.warning("the process group could not be aborted: %s", error)
    return True


def stop_process_group() -> None:
    """Destroy the process group, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
