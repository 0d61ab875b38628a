"""The shell script of a local job."""

import shlex
from pathlib import Path

from cluster.job_spec import JobSpec


def render_script(spec: JobSpec) -> str:
    """Write the script that a local job runs; a pure function of the job.

    The ranks' interpreter, the command's first word, also runs the supervisor.
    """
    ranks, again = spec.resources.num_ranks, spec.requeue.max_requeues
    lines = [
        "#!/bin/bash",
        f"# {spec.name}: {ranks} rank(s) on this machine, started again up to {again} times.",
        "set -e",
        "# Who stops the job leaves a note, which the supervisor reads when it has started.",
        "trap '' TERM",
        f"cd {shlex.quote(str(spec.working_directory))}",
        *(f"export {name}={shlex.quote(value)}" for name, value in spec.environment),
        *spec.setup,
        "exec " + " \\\n    ".join(_supervisor(spec)),
    ]
    return "\n".join(lines) + "\n"


def _supervisor(spec: JobSpec) -> list[str]:
    python, *arguments = spec.command
    return [
        f"{shlex.quote(python)} -m cluster.local.supervise",
        f"--job-folder {shlex.quote(str(spec.job_folder))}",
        f"--ranks {spec.resources.num_ranks}",
        f"--max-restarts {spec.requeue.max_requeues}",
        f"--stop-timeout {spec.requeue.signal_lead_seconds}",
        *(f"--after {shlex.quote(job)}" for job in spec.dependencies),
        f"-- {shlex.join(arguments)}",
    ]


def runs_of(run_folder: Path) -> Path:
    """Return the folder in which jobs that a run waits for are looked for."""
    return run_folder.parent
