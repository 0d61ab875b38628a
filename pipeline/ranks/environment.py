"""This process among the ranks of a job.

The only file that reads the variables torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT),
and the time limit that our own launchers add. It does not import torch, so that launchers start at once.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.shared.errors import UserError
from pipeline.shared.ports import free_port

__all__ = ["START_TIMEOUT_VARIABLE", "LauncherError", "Ranks", "threads_given"]

START_TIMEOUT_VARIABLE = "MEGAPONDER_START_TIMEOUT_SECONDS"
_CURE = "start with torchrun, or unset RANK and WORLD_SIZE if no launcher has started this command"
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class LauncherError(UserError, ValueError):
    """The variables of a launcher contradict each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The rank of this process, the size of the job, and where its ranks meet."""

    rank: int
    world_size: int
    local_rank: int
    master_address: str
    master_port: int
    is_launched: bool
    """Started by a launcher (torchrun, srun, ours), not by hand."""
    start_timeout_seconds: int | None = None
    """Limit for all ranks to connect; None applies the limit of collectives."""

    hosts_store: bool = True
    """Whether the first rank starts the store in which ranks meet; torchrun has one of its own."""

    @property
    def is_on_one_machine(self) -> bool:
        """Whether all ranks meet at an address of this machine that no other one reaches."""
        return self.master_address in ("localhost", "::1") or self.master_address.startswith("127.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Ranks":
        """Read torchrun's variables; without all of them this is the only rank, on a free local port.

        Other tools leave some of them behind. A single rank without LOCAL_RANK has none of torchrun's either.

        Raises:
            LauncherError: all of RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are set, but they are no numbers,
                or contradict each other.
        """
        variables = os.environ if environment is None else environment
        is_left_behind = variables.get("WORLD_SIZE") == "1" and "LOCAL_RANK" not in variables
        if is_left_behind or not all(variables.get(name) for name in _NEEDED):
            return cls(
                rank=0,
                world_size=1,
                local_rank=0,
                master_address="127.0.0.1",
                master_port=free_port(),
                is_launched=False,
            )
        rank, world_size, port = (_number(variables, name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        if not 0 <= rank < world_size:
            raise LauncherError(
                f"RANK must be in [0, WORLD_SIZE), but is {rank} with WORLD_SIZE={world_size}; {_CURE}"
            )
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=_number(variables, "LOCAL_RANK") if "LOCAL_RANK" in variables else 0,
            master_address=variables["MASTER_ADDR"],
            master_port=port,
            is_launched=True,
            hosts_store=variables.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            start_timeout_seconds=(
                _number(variables, START_TIMEOUT_VARIABLE) if START_TIMEOUT_VARIABLE in variables else None
            ),
        )


def threads_given(environment: Mapping[str, str]) -> str | None:
    """Return OMP_NUM_THREADS, a number for each level of nesting; None if it is unset or nonsense."""
    given = environment.get("OMP_NUM_THREADS", "")
    is_sound = all(part.strip().isdecimal() and int(part) > 0 for part in given.split(","))
    return given if is_sound else None


def _number(variables: Mapping[str, str], name: str) -> int:
    try:
        return int(variables[name])
    except ValueError as error:
        raise LauncherError(f"{name} must be a whole number, but is {variables[name]!r}; {_CURE}") from error
