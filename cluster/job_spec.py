"""The description of a job for any target: plain values that targets render and submit."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pipeline.shared.secrets import mask_text, mask_variable

LOGS_FOLDER = "logs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a job requests.

    Attributes:
        nodes: machines, all or none of them.
        ranks_per_node: processes of a machine.
        gpus_per_node: one for each rank, or 0.
        cpus_per_rank: cores.
        memory_per_node: such as `64G`; None: the cluster's default.
        wall_time: [DAYS-]HH:MM:SS; None: the cluster's limit.
    """

    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_rank: int = 1
    memory_per_node: str | None = None
    wall_time: str | None = None

    @property
    def num_ranks(self) -> int:
        """Processes of the job."""
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The queue of a cluster in which a job waits, and its account.

    Attributes:
        partition, account, qos, constraint: as SLURM names them; None: the cluster's default.
        options: further #SBATCH lines, as the user wrote them.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The image that ranks run in.

    Attributes:
        image: as the runtime names it.
        runtime: what starts it.
        mounts: HOST:CONTAINER pairs.
    """

    image: str
    runtime: Literal["pyxis", "apptainer"]
    mounts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeuePolicy:
    """What happens when a job loses its machines.

    Attributes:
        max_requeues: how often it may restart.
        signal_lead_seconds: how long before the end of the wall time its ranks receive the stop signal.
    """

    max_requeues: int = 10
    signal_lead_seconds: int = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepMember:
    """One run of a hyper-parameter sweep.

    Attributes:
        name: of the run.
        run_folder: of the run.
        overrides: added to the command, `name` and `output_dir` among them.
    """

    name: str
    run_folder: Path
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One job: a command that every rank runs, on a number of machines.

    Attributes:
        name: of the run, with that of the workflow step; shown by queues.
        command: what every rank runs. It reads torchrun's variables and exits with the codes of
            `pipeline.shared.exit_codes`.
        run_folder: of the run, shared by all nodes.
        job_folder: of this job, inside the run folder: its record, script, configuration and logs.
        working_directory: where ranks start.
        resources, queue, container, requeue: see their classes.
        environment: variables of every rank, sorted by name.
        secrets: names of variables that are masked, besides those that look like secrets.
        setup: shell lines before the ranks start.
        dependencies: ids of jobs at the same target that must have succeeded first.
        chain: jobs in a row; each starts when the one before has ended, however it ended.
        sweep: the run of each job of an array; empty: one job.
        start_timeout_seconds: limit for the ranks of a placed job to connect.
        heartbeat_seconds: between two heartbeats.
        kind: `ranks`, or `driver`: one process that itself requests more of the cluster (data preparation).
    """

    name: str
    command: tuple[str, ...]
    run_folder: Path
    job_folder: Path
    working_directory: Path
    resources: Resources = Resources()
    queue: Queue = Queue()
    container: Container | None = None
    environment: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    requeue: RequeuePolicy = field(default_factory=RequeuePolicy)
    chain: int = 1
    sweep: tuple[SweepMember, ...] = ()
    start_timeout_seconds: int = 600
    heartbeat_seconds: int = 30
    kind: Literal["ranks", "driver"] = "ranks"

    def masked(self) -> "JobSpec":
        """Return the job as it may be shown."""
        return replace(
            self,
            environment=tuple(
                (name, mask_variable(name, value, self.secrets)) for name, value in self.environment
            ),
            setup=tuple(mask_text(line, self.secrets) for line in self.setup),
            queue=replace(
                self.queue, options=tuple(mask_text(line, self.secrets) for line in self.queue.options)
            ),
        )

    @property
    def log_folder(self) -> Path:
        """The folder of the ranks' logs, see `cluster.job_files`."""
        return self.job_folder / LOGS_FOLDER
