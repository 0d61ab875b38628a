"""Run functions on gloo ranks of this machine, which take one call after another and are shared by tests."""

import gc
import multiprocessing
import os
import queue
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch

from pipeline.shared.ports import free_port
from tests.support.forks import fork_context

__all__ = ["RankPool", "SharedRanks", "run_alone", "run_on_ranks"]

# Longer than any call, which the limit of the caller ends.
_COLLECTIVE_TIMEOUT_SECONDS = 3600
_POLL_SECONDS = 0.2


def run_alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function(*arguments)`` in this process, as the only rank of a gloo process group."""
    from pipeline.ranks.distributed import start_process_group, stop_process_group
    from pipeline.ranks.environment import Ranks

    start_process_group(Ranks.from_environment({}), timeout_seconds=60)
    try:
        return function(*arguments)
    finally:
        stop_process_group()
        _end_threads()


def run_on_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout_seconds: float = 240
) -> list[Any]:
    """Call ``function(*arguments)`` once on each rank of a fresh gloo group; see :meth:`RankPool.run`."""
    with RankPool(world_size) as pool:
        return pool.run(function, *arguments, timeout_seconds=timeout_seconds)


class RankPool:
    """A gloo group whose ranks wait for calls."""

    def __init__(self, world_size: int) -> None:
        """Start the ranks.

        Args:
            world_size: number of ranks, at least 1.
        """
        context = fork_context()
        port = free_port()
        self._results: Any = context.Queue()
        self._calls: list[Any] = [context.Queue() for _ in range(world_size)]
        self._processes = [
            context.Process(target=_serve, args=(rank, world_size, port, calls, self._results), daemon=False)
            for rank, calls in enumerate(self._calls)
        ]
        for process in self._processes:
            process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 240) -> list[Any]:
        """Call ``function(*arguments)`` on each rank and return the results by rank.

        Args:
            function: importable by name; its result must be picklable.
            arguments: of the function.
            timeout_seconds: for the call, and for the start of the ranks in the first one.
        Raises:
            RuntimeError: a rank failed (named, with its traceback) or did not finish in time. All ranks are
                killed then.
        """
        for calls in self._calls:
            calls.put((function, arguments))
        try:
            return self._collect(timeout_seconds)
        except RuntimeError:
            self.close()
            raise

    def close(self) -> None:
        """Kill the ranks, which wait for calls and have nothing to lose."""
        for process in self._processes:
            process.kill()
            process.join()

    def _collect(self, timeout_seconds: float) -> list[Any]:
        num_ranks = len(self._processes)
        by_rank: dict[int, Any] = {}
        deadline = time.monotonic() + timeout_seconds
        while len(by_rank) < num_ranks:
            try:
                rank, succeeded, result = self._results.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                missing = [rank for rank in range(num_ranks) if rank not in by_rank]
                self._raise_if_dead(missing)
                if time.monotonic() > deadline:
                    message = f"ranks {missing} did not finish within {timeout_seconds} seconds"
                    raise RuntimeError(message) from None
                continue
            if not succeeded:
                raise RuntimeError(f"rank {rank} of {num_ranks} failed:\n{result}")
            by_rank[rank] = result
        return [by_rank[rank] for rank in range(num_ranks)]

    def _raise_if_dead(self, missing: list[int]) -> None:
        # A result may still be in the pipe of a rank that has left with code 0.
        dead = [rank for rank in missing if self._processes[rank].exitcode not in (None, 0)]
        if dead:
            codes = ", ".join(f"rank {rank}: exit code {self._processes[rank].exitcode}" for rank in dead)
            raise RuntimeError(f"ranks died without a result ({codes})")


class SharedRanks:
    """Pools by number of ranks; a pool in which a rank has failed is replaced."""

    def __init__(self) -> None:
        """Start no ranks yet."""
        self._pools: dict[int, RankPool] = {}

    def run(
        self, function: Callable[..., Any], world_size: int, *arguments: Any, timeout_seconds: float = 240
    ) -> list[Any]:
        """Call ``function(*arguments)`` on each of ``world_size`` ranks; see :meth:`RankPool.run`."""
        pool = self._pools.pop(world_size, None) or RankPool(world_size)
        results = pool.run(function, *arguments, timeout_seconds=timeout_seconds)
        self._pools[world_size] = pool
        return results

    def close(self) -> None:
        """Kill all ranks."""
        for pool in self._pools.values():
            pool.close()


def _serve(rank: int, world_size: int, port: int, calls: Any, results: Any) -> None:
    """Run calls until one fails or the calling process has died."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    # What has been imported stays: the collections after each call need not go through it.
    gc.freeze()
    from pipeline.ranks.distributed import start_process_group
    from pipeline.ranks.environment import Ranks

    try:
        start_process_group(Ranks.from_environment(), timeout_seconds=_COLLECTIVE_TIMEOUT_SECONDS)
        while (call := _next_call(calls)) is not None:
            function, arguments = call
            results.put((rank, True, function(*arguments)))
            _end_threads()
    except BaseException:
        results.put((rank, False, traceback.format_exc()))


def _end_threads() -> None:
    """Release models: their process groups, though destroyed, keep threads that wake up often."""
    wrappers = sys.modules.get("megatron.core.distributed.distributed_data_parallel")
    if wrappers is not None:
        for found in gc.get_objects():
            if type(found) is wrappers.DistributedDataParallel:
                # Autograd's hooks keep the wrapper alive where the collector cannot see it; empty it.
                vars(found).clear()
    gc.collect()


def _next_call(calls: Any) -> Any:
    caller = multiprocessing.parent_process()
    while caller is not None and caller.is_alive():
        try:
            return calls.get(timeout=5)
        except queue.Empty:
            continue
    return None
