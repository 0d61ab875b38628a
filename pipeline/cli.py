"""`megaponder`: the entry point, with all commands."""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from cluster.commands import demo, jobs, submit
from pipeline.commands import (
    checkpoint,
    compare,
    config,
    convergence,
    convert,
    data,
    evaluate,
    generate,
    parity,
    plan,
    rehearse,
    report,
    tokenizer,
    train,
    verify,
)
from pipeline.commands.shared import exit_on_user_error, ignore_leftover_variables, report_notices_once
from pipeline.shared.console import report_crashes, say
from pipeline.shared.errors import UserError
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.paths import UnknownNameError, expand_path
from pipeline.shared.python_start import forget_working_directory
from pipeline.shared.streams import protect_standard_streams

app = typer.Typer(
    name="megaponder",
    help="Pretrain language models that decide per token how long to think, on Megatron-Core.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    # Keep Python's own traceback for crashes: plain text in the logs of jobs.
    pretty_exceptions_enable=False,
)

app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=train.EPILOG)(train.train)
app.command("eval", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(epilog=verify.EPILOG)(verify.verify)
app.command(epilog=generate.EPILOG)(generate.generate)
app.command(epilog=compare.EPILOG)(compare.compare)
app.command(epilog=convergence.EPILOG)(convergence.convergence)
app.command(epilog=plan.EPILOG)(plan.plan)
app.command(epilog=rehearse.EPILOG)(rehearse.rehearse)
app.command(epilog=submit.EPILOG)(submit.submit)
app.command(epilog=report.EPILOG)(report.report)
app.command(epilog=parity.EPILOG)(parity.parity)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(config.app, name="config")
app.add_typer(convert.app, name="convert")
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(tokenizer.app, name="tokenizer")

# How Python represents the bytes of an argument that its encoding cannot decode.
_UNDECODED = re.compile("[\ud800-\udfff]")


def main() -> None:
    """Run the command line."""
    protect_standard_streams()
    report_crashes()
    with exit_on_user_error():
        _check_working_directory()
        forget_working_directory()
        ignore_leftover_variables()
        report_notices_once()
        sys.exit(_run())


def _check_working_directory() -> None:
    """Raise a UserError where the folder that relative paths begin in has been removed."""
    try:
        Path.cwd()
    except OSError as error:
        raise UserError(
            f"the working directory must exist, but cannot be used ({error.strerror}); change to another one"
        ) from error


def _run() -> int:
    """Run the command; return its exit code."""
    # Not `app()`, which replaces the hook for crashes.
    commands = get_command(app)
    _expand_paths_of(commands)
    try:
        code: int | None = commands(standalone_mode=False)
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except typer.TyperException as error:
        _show_usage_error(error)
        return error.exit_code
    return code or ExitCode.DONE


def _expand_paths_of(command: Any) -> None:
    """Let a command and those below it get paths with `~` and variables replaced by what they stand for."""
    for inner in getattr(command, "commands", {}).values():
        _expand_paths_of(inner)
    if command.callback is not None:
        command.callback = partial(_call_with_paths, command.callback)


def _call_with_paths(callback: Callable[..., Any], **arguments: Any) -> Any:
    return callback(**{name: _expanded(value) for name, value in arguments.items()})


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    if isinstance(value, str | Path) and _UNDECODED.search(str(value)):
        # It could not be stored: manifests and configurations are UTF-8.
        raise typer.BadParameter(f"{value}: must be UTF-8, but has bytes that are not; rename it")
    try:
        return Path(expand_path(str(value))) if isinstance(value, Path) else value
    except UnknownNameError as error:
        raise typer.BadParameter(f"{value}: {error}") from None


def _show_usage_error(error: typer.TyperException) -> None:
    """Show an error of the command line; typer's own way prints what was typed without escaping it."""
    context: typer.Context | None = getattr(error, "ctx", None)
    message = error.format_message()
    # Without a message, the help has been shown.
    if context is not None and message:
        say(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n", err=True)
    if message:
        say(f"error: {message}", err=True)


if __name__ == "__main__":
    main()
