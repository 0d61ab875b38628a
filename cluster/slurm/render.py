"""The script for `sbatch` as a pure function of a job; users can read and edit it."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cluster.job_spec import Container, JobSpec
from cluster.slurm.places import LOG_NAME, places_of
from cluster.spec_checks import check_spec
from pipeline.ranks.environment import START_TIMEOUT_VARIABLE
from pipeline.ranks.final_error import FINAL_ERROR_NAME, FINAL_ERROR_VARIABLE
from pipeline.shared.errors import ClusterError
from pipeline.shared.exit_codes import AGREED_CODES, FINAL_CODES, ExitCode

TEMPLATE = "job.sbatch.j2"
# After the first rank has ended; ranks that leave together have left by then.
_LONGEST_WAIT_SECONDS = 120
# In a dry run of a workflow the names of steps stand for the ids of their jobs.
_JOB_ID = re.compile(r"(slurm:)?[A-Za-z0-9][A-Za-z0-9._+-]*")


def render_script(spec: JobSpec) -> str:
    """Return the script.

    Raises:
        ClusterError: it could not hold what the job has, see `cluster.spec_checks`.
    """
    check_spec(spec)
    _refuse(spec)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        # A shell script is not markup; text of users passes through the filter `quote`.
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment.get_template(TEMPLATE).render(
        options=list(_sbatch_options(spec)),
        sweep=spec.sweep,
        places=places_of(spec),
        chain=spec.chain,
        job_folder=spec.job_folder,
        max_requeues=spec.requeue.max_requeues,
        environment=_variables(spec),
        setup=spec.setup,
        num_ranks=spec.resources.num_ranks,
        num_nodes=spec.resources.nodes,
        ranks_per_node=spec.resources.ranks_per_node,
        srun_options=list(_srun_options(spec)),
        command_lines=list(_command_lines(spec)),
        final_codes=[int(code) for code in FINAL_CODES if code != ExitCode.DONE],
        final_error_variable=FINAL_ERROR_VARIABLE,
        final_error_name=FINAL_ERROR_NAME,
        agreed_codes=[int(code) for code in AGREED_CODES],
    )


def _refuse(spec: JobSpec) -> None:
    """Refuse names that SLURM or a container would take for several, or for patterns."""
    findings = []
    for place in places_of(spec):
        if "\\" in str(place.job_folder):
            findings.append(
                f"SLURM has no way to write a log into a folder with a backslash: {place.job_folder}"
            )
    for job in spec.dependencies:
        if _JOB_ID.fullmatch(job) is None:
            findings.append(f"--after must be the id of a SLURM job, such as slurm:1234, but is {job!r}")
    if spec.container is not None:
        findings += [
            f"a folder that is mounted in a container must have no colon and no comma: {folder}"
            for folder in _own_folders(spec)
            if set(":,") & set(str(folder))
        ]
    if findings:
        raise ClusterError(f"{'; '.join(findings)}; rename it, or give another one")


def _sbatch_options(spec: JobSpec) -> Iterator[str]:
    resources, queue = spec.resources, spec.queue
    yield f"--job-name={_quoted(spec.name)}"
    yield f"--nodes={resources.nodes}"
    yield f"--ntasks={resources.num_ranks}"
    yield f"--ntasks-per-node={resources.ranks_per_node}"
    yield f"--cpus-per-task={resources.cpus_per_rank}"
    if resources.gpus_per_node:
        yield f"--gpus-per-node={resources.gpus_per_node}"
    if resources.memory_per_node:
        yield f"--mem={resources.memory_per_node}"
    if resources.wall_time:
        yield f"--time={resources.wall_time}"
    named = {"partition": queue.partition, "account": queue.account, "qos": queue.qos}
    yield from (f"--{name}={value}" for name, value in named.items() if value)
    if queue.constraint:
        yield f"--constraint={_quoted(queue.constraint)}"
    if spec.dependencies:
        yield "--dependency=afterok:" + ":".join(job.removeprefix("slurm:") for job in spec.dependencies)
        yield "--kill-on-invalid-dep=yes"
    if spec.sweep:
        yield f"--array=0-{len(spec.sweep) - 1}"
    yield f"--signal=TERM@{spec.requeue.signal_lead_seconds}"
    yield "--requeue"
    yield "--open-mode=append"
    yield f"--chdir={_quoted(str(spec.working_directory))}"
    # The jobs of a chain or an array write into their own folders once they know which.
    log = "job-%j.log" if spec.sweep or spec.chain > 1 else LOG_NAME
    yield f"--output={_quoted(_without_patterns(spec.job_folder / log))}"
    yield from queue.options


def _srun_options(spec: JobSpec) -> Iterator[str]:
    # Only some versions of SLURM pass the cores of a task on from sbatch to srun.
    yield f"--cpus-per-task={spec.resources.cpus_per_rank}"
    yield "--export=ALL"
    yield "--kill-on-bad-exit=0"
    yield f"--wait={min(spec.start_timeout_seconds, _LONGEST_WAIT_SECONDS)}"
    container = spec.container
    if container is not None and container.runtime == "pyxis":
        yield f"--container-image={shlex.quote(container.image)}"
        yield f"--container-mounts={shlex.quote(','.join(_mounts(spec, container)))}"
        yield f"--container-workdir={shlex.quote(str(spec.working_directory))}"


def _command_lines(spec: JobSpec) -> Iterator[str]:
    if spec.container is not None and spec.container.runtime == "apptainer":
        words = ["apptainer", "exec", *(["--nv"] if spec.resources.gpus_per_node else [])]
        mounts = [f"--bind={mount}" for mount in _mounts(spec, spec.container)]
        yield shlex.join([*words, *mounts, f"--pwd={spec.working_directory}", spec.container.image])
    command = shlex.join(spec.command)
    yield f'{command} "${{overrides[@]}}"' if spec.sweep else command


def _mounts(spec: JobSpec, container: Container) -> list[str]:
    """Return the user's mounts, the folders of all runs and the working directory."""
    own = [f"{folder}:{folder}" for folder in _own_folders(spec)]
    return list(dict.fromkeys([*container.mounts, *own]))


def _own_folders(spec: JobSpec) -> list[Path]:
    return [spec.working_directory, *(place.run_folder for place in places_of(spec))]


def _variables(spec: JobSpec) -> list[tuple[str, str]]:
    variables = {
        "OMP_NUM_THREADS": str(spec.resources.cpus_per_rank),
        START_TIMEOUT_VARIABLE: str(spec.start_timeout_seconds),
        **dict(spec.environment),
    }
    return sorted(variables.items())


def _quoted(text: str) -> str:
    """Quote for a line of #SBATCH, where a backslash keeps what follows it, in quotes and outside."""
    if shlex.quote(text) == text:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _without_patterns(path: Path) -> str:
    """Escape percent signs in a folder's name: SLURM takes them for patterns."""
    return f"{str(path.parent).replace('%', '%%')}/{path.name}"
