"""Run a function on several gloo ranks of this machine."""

import os
import queue
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

__all__ = ["run_alone", "run_on_ranks"]


def run_alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function(*arguments)`` in this process, as the only rank of a gloo process group."""
    from pipeline.distributed import start_process_group, stop_process_group
    from pipeline.ranks import Ranks

    start_process_group(Ranks.from_environment({}), timeout_seconds=60)
    try:
        return function(*arguments)
    finally:
        stop_process_group()


def run_on_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout_seconds: float = 120
) -> list[Any]:
    """Call ``function(*arguments)`` on each rank of a fresh gloo group and return the results by rank.

    Args:
        function: importable by name (ranks are spawned); its result must be picklable.
        world_size: number of ranks; 1 is a plain case.
        timeout_seconds: for the whole run, start included.
    Raises:
        RuntimeError: a rank failed (named, with its traceback) or did not finish in time.
    """
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    port = _free_port()
    processes = [
        context.Process(
            target=_run_rank,
            args=(function, arguments, rank, world_size, port, timeout_seconds, results),
            daemon=False,
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        return _collect(results, processes, timeout_seconds)
    finally:
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_rank(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    rank: int,
    world_size: int,
    port: int,
    timeout_seconds: float,
    results: Any,
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    from pipeline.distributed import start_process_group, stop_process_group
    from pipeline.ranks import Ranks

    try:
        start_process_group(Ranks.from_environment(), timeout_seconds=int(timeout_seconds))
        results.put((rank, True, function(*arguments)))
        stop_process_group()
    except BaseException:
        results.put((rank, False, traceback.format_exc()))


def _collect(results: Any, processes: list[Any], timeout_seconds: float) -> list[Any]:
    by_rank: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_seconds
    while len(by_rank) < len(processes):
        try:
            rank, succeeded, result = results.get(timeout=0.2)
        except queue.Empty:
            _raise_if_hopeless(processes, by_rank, deadline, timeout_seconds)
            continue
        if not succeeded:
            _kill(processes)
            raise RuntimeError(f"rank {rank} of {len(processes)} failed:\n{result}")
        by_rank[rank] = result
    return [by_rank[rank] for rank in range(len(processes))]


def _raise_if_hopeless(
    processes: list[Any], by_rank: dict[int, Any], deadline: float, timeout_seconds: float
) -> None:
    missing = [rank for rank in range(len(processes)) if rank not in by_rank]
    # A result may still be in the pipe of a rank that has left with code 0.
    dead = [rank for rank in missing if processes[rank].exitcode not in (None, 0)]
    if dead:
        _kill(processes)
        codes = ", ".join(f"rank {rank}: exit code {processes[rank].exitcode}" for rank in dead)
        raise RuntimeError(f"ranks died without a result ({codes})")
    if time.monotonic() > deadline:
        _kill(processes)
        raise RuntimeError(f"ranks {missing} did not finish within {timeout_seconds} seconds")


def _kill(processes: list[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
