"""Settings of a submission: on which machines a run goes, and what happens when they are taken away."""

import re
import unicodedata
from typing import Annotated, Literal

from pydantic import Field, SerializationInfo, field_serializer

from pipeline.config.section import Count, CountOrZero, PathText, QueueName, Section, Switch, shows_secrets
from pipeline.shared.secrets import mask_text, mask_variable

Target = Literal["local", "slurm", "ray"]
_Word = Annotated[str, Field(min_length=1, pattern=r"^[^\s\p{Cc}]+$")]
# Nodes mostly have the same home as the machine that submits.
_PathWord = Annotated[PathText, Field(min_length=1, pattern=r"^[^\s\p{Cc}]+$")]
_Line = Annotated[str, Field(min_length=1, pattern=r"^[^\p{Cc}]+$")]
_ShellLine = Annotated[str, Field(min_length=1, pattern=r"^[^\p{Cc}]*(\t[^\p{Cc}]*)*$")]
_Value = Annotated[str, Field(pattern=r"^[^\x00]*$")]
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What tells a rank who it is, what bash does not let anybody set, and what the script of a job uses itself.
_RESERVED_VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("UID", "EUID", "PPID", "BASHOPTS", "BASH_VERSINFO", "SHELLOPTS", "IFS", "_"),
    *("attempt", "codes", "is_preempted", "job_folder", "link", "logs", "overrides", "run_rank", "starts"),
)


def is_reserved_variable(name: str) -> bool:
    """Return whether a variable of a job belongs to the job itself."""
    return name in _RESERVED_VARIABLES


def has_control_characters(text: str) -> bool:
    """Return whether a text has characters that end a line, or that a terminal or a shell acts upon."""
    return any(unicodedata.category(letter) == "Cc" for letter in text)


class ContainerSection(Section):
    """The container image that ranks run in."""

    image: _PathWord = Field(
        description="name in a registry, or path of a .sqsh or .sif file, as the runtime expects it"
    )
    runtime: Literal["pyxis", "apptainer"] = Field(
        "pyxis", description="srun --container-image (pyxis and enroot), or apptainer exec"
    )
    mounts: tuple[_PathWord, ...] = Field(
        (), description="HOST:CONTAINER paths; the run's folders are always mounted"
    )


class SubmitSection(Section):
    """What `megaponder submit` requests of a cluster; without effect on `megaponder train`."""

    target: Target = Field("local", description="where jobs run: processes of this machine, SLURM, or Ray")
    nodes: Count = Field(1, description="machines of the job")
    gpus_per_node: CountOrZero = Field(
        0, description="one for each rank of a node; 0: ranks compute on the CPU"
    )
    cpus_per_rank: Count = Field(1, description="processor cores for each rank")
    memory_per_node: Annotated[str, Field(pattern=r"^[1-9][0-9]*[KMGT]$")] | None = Field(
        None, description="such as 64G; default: the cluster's"
    )
    wall_time: Annotated[str, Field(pattern=r"^([0-9]+-)?[0-9]{1,2}:[0-9]{2}:[0-9]{2}$")] | None = Field(
        None, description="[DAYS-]HH:MM:SS after which the cluster ends the job; default: the cluster's"
    )
    partition: QueueName | None = Field(None, description="SLURM partition")
    account: QueueName | None = Field(None, description="account that is charged")
    qos: QueueName | None = Field(None, description="SLURM quality of service")
    constraint: _Word | None = Field(
        None, description="features that nodes must have, as sbatch --constraint"
    )
    options: tuple[_Line, ...] = Field((), description="further #SBATCH options, such as --exclude=node7")
    container: ContainerSection | None = Field(None, description="image that the ranks run in; default: none")
    python: _PathWord | None = Field(
        None, description="the interpreter on the nodes; default: this one, or `python` in a container"
    )
    setup: tuple[_ShellLine, ...] = Field(
        (), description="shell lines before the ranks start, such as `module load cuda`"
    )
    environment: dict[str, _Value] = Field(default_factory=dict, description="variables of every rank")
    secrets: tuple[_Word, ...] = Field(
        (),
        description="names of variables in `environment` that are masked wherever the configuration is "
        "stored or shown; those that are called TOKEN, KEY, SECRET, PASSWORD or the like are masked anyway",
    )
    max_requeues: CountOrZero = Field(
        10,
        description="how often the job restarts after a preemption, a hang or a lost node; with `local` "
        "after a crash too",
    )
    chain: Count = Field(
        1,
        description="jobs in a row, each of which resumes when the one before reaches its wall_time",
    )
    signal_lead_seconds: Count | None = Field(
        None,
        description="how long before the end of its wall_time a job receives the stop signal; default: "
        "derived from the times of steps and saves of this run, else 300",
    )
    start_timeout_seconds: Count = Field(
        600,
        description="limit for a Ray cluster to place all ranks, and for ranks to connect",
    )
    ray_address: _Word | None = Field(
        None,
        description="of the cluster's Jobs API, such as http://head:8265; default: RAY_API_SERVER_ADDRESS",
    )
    heartbeat_seconds: Count = Field(30, description="between two heartbeats of a job on Ray")
    unreachable_timeout_seconds: CountOrZero = Field(
        3600,
        description="how long `submit --wait`, `jobs logs -f` and jobs that wait for others keep waiting "
        "while the cluster does not respond",
    )
    check_memory: Switch = Field(
        True, description="refuse to submit a run that, according to `megaponder plan`, does not fit the GPUs"
    )
    gpu: _Word = Field(
        "h100-80g", description="the device whose memory is checked, by its name in `megaponder plan`"
    )

    @field_serializer("environment", when_used="json")
    def _mask_environment(self, values: dict[str, str], info: SerializationInfo) -> dict[str, str]:
        if shows_secrets(info):
            return values
        return {name: mask_variable(name, value, self.secrets) for name, value in values.items()}

    @field_serializer("setup", "options", when_used="json")
    def _mask_lines(self, values: tuple[str, ...], info: SerializationInfo) -> list[str]:
        return [value if shows_secrets(info) else mask_text(value, self.secrets) for value in values]

    @field_serializer("ray_address", when_used="json")
    def _mask_address(self, value: str | None, info: SerializationInfo) -> str | None:
        return value if value is None or shows_secrets(info) else mask_text(value)


def wall_seconds(wall_time: str) -> int:
    """Return the seconds of [DAYS-]HH:MM:SS."""
    days, _, clock = wall_time.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
