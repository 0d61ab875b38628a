"""This process among the ranks of a job.

The only file that reads the variables torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT),
and the time limit that our own launchers add. It does not import torch, so that launchers start at once.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.shared.ports import free_port

__all__ = ["START_TIMEOUT_VARIABLE", "Ranks"]

START_TIMEOUT_VARIABLE = "MEGAPONDER_START_TIMEOUT_SECONDS"


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

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Ranks":
        """Read torchrun's variables; without them this is the only rank, on a free local port.

        Raises:
            ValueError: some of RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are set and others are not, or one
                is not a number.
        """
        variables = os.environ if environment is None else environment
        needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in needed if name not in variables]
        if "RANK" not in variables and "WORLD_SIZE" not in variables:
            return cls(
                rank=0,
                world_size=1,
                local_rank=0,
                master_address="127.0.0.1",
                master_port=free_port(),
                is_launched=False,
            )
        if missing:
            raise ValueError(
                f"a launcher must set {', '.join(needed)} together, but {', '.join(missing)} is missing; "
                "start with torchrun, or unset RANK and WORLD_SIZE to run one rank"
            )
        rank, world_size, port = (_number(variables, name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        if not 0 <= rank < world_size:
            raise ValueError(f"RANK must be in [0, WORLD_SIZE), but is {rank} with WORLD_SIZE={world_size}")
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=_number(variables, "LOCAL_RANK") if "LOCAL_RANK" in variables else 0,
            master_address=variables["MASTER_ADDR"],
            master_port=port,
            is_launched=True,
            start_timeout_seconds=(
                _number(variables, START_TIMEOUT_VARIABLE) if START_TIMEOUT_VARIABLE in variables else None
            ),
        )


def _number(variables: Mapping[str, str], name: str) -> int:
    try:
        return int(variables[name])
    except ValueError as error:
        raise ValueError(f"{name} must be a whole number, but is {variables[name]!r}") from error
