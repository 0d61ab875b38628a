"""What no job may hold, whatever it is submitted to: text that a script would take for something else."""

from collections.abc import Iterator

from cluster.job_spec import JobSpec
from pipeline.config.submit_section import VARIABLE_NAME, has_control_characters, is_reserved_variable
from pipeline.shared.errors import ClusterError


def check_spec(spec: JobSpec) -> None:
    """Refuse a job with control characters in its texts, or variables with impossible names.

    Raises:
        ClusterError: lists all of them.
    """
    findings = [
        f"{what} has control characters ({text!r})"
        for what, text in _texts(spec)
        if has_control_characters(text)
    ]
    for name, value in spec.environment:
        if VARIABLE_NAME.fullmatch(name) is None or is_reserved_variable(name):
            findings.append(f"a variable of the environment is called {name!r}")
        if "\0" in value:
            findings.append(f"the variable {name!r} has a zero byte")
    if findings:
        raise ClusterError(
            f"a job must be one that a script can hold, but {'; '.join(findings)}; change that, or submit "
            "from another folder"
        )


def _texts(spec: JobSpec) -> Iterator[tuple[str, str]]:
    yield "its name", spec.name
    yield "the folder of the run", str(spec.run_folder)
    yield "the folder of the job", str(spec.job_folder)
    yield "the working directory", str(spec.working_directory)
    for name in ("partition", "account", "qos", "constraint"):
        yield f"submit.{name}", getattr(spec.queue, name) or ""
    for line in spec.queue.options:
        yield "submit.options", line
    for line in spec.setup:
        # Tabs may indent a line of a shell.
        yield "submit.setup", line.replace("\t", " ")
    for job in spec.dependencies:
        yield "--after", job
    if spec.container is not None:
        yield "submit.container.image", spec.container.image
        for mount in spec.container.mounts:
            yield "a folder of the container", mount
    for member in spec.sweep:
        yield "the folder of a run of the sweep", str(member.run_folder)
