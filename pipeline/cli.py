"""`megaponder`: the entry point, with all commands."""

import sys

import typer
from typer.main import get_command

from cluster.commands import demo, jobs, submit
from pipeline.commands import (
    checkpoint,
    compare,
    convert,
    data,
    evaluate,
    generate,
    parity,
    plan,
    report,
    tokenizer,
    train,
    verify,
)
from pipeline.commands.shared import exit_on_user_error, ignore_leftover_variables, report_notices_once
from pipeline.shared.console import report_crashes, say
from pipeline.shared.exit_codes import ExitCode
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
app.command(epilog=plan.EPILOG)(plan.plan)
app.command(epilog=submit.EPILOG)(submit.submit)
app.command(epilog=report.EPILOG)(report.report)
app.command(epilog=parity.EPILOG)(parity.parity)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(convert.app, name="convert")
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(tokenizer.app, name="tokenizer")


def main() -> None:
    """Run the command line."""
    protect_standard_streams()
    report_crashes()
    forget_working_directory()
    ignore_leftover_variables()
    with exit_on_user_error():
        report_notices_once()
        sys.exit(_run())


def _run() -> int:
    """Run the command; return its exit code."""
    try:
        # Not `app()`, which replaces the hook for crashes.
        code: int | None = get_command(app)(standalone_mode=False)
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except typer.TyperException as error:
        _show_usage_error(error)
        return error.exit_code
    return code or ExitCode.DONE


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
