"""`megaponder`: the entry point, with all commands."""

import re
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from pipeline.commands.help_types import hide_obvious_types, without_obvious_types
from pipeline.commands.lazy_group import CommandEntry, LazyGroup
from pipeline.commands.shared import exit_on_user_error, ignore_leftover_variables, report_notices_once
from pipeline.commands.spellings import current_spelling
from pipeline.shared.console import report_crashes, say
from pipeline.shared.errors import UserError
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.paths import UnknownNameError, expand_path
from pipeline.shared.python_start import forget_working_directory
from pipeline.shared.streams import protect_standard_streams


def _command(name: str, module: str, help_line: str, *, attribute: str | None = None) -> CommandEntry:
    return CommandEntry(name=name, module=module, attribute=attribute or name, help=help_line)


def _group(name: str, module: str, help_line: str) -> CommandEntry:
    return CommandEntry(name=name, module=module, attribute="app", help=help_line)


COMMANDS = (
    _command(
        "demo",
        "cluster.commands.demo",
        "Run everything once, small: raw text, tokens, training, evaluation, generation, report.",
    ),
    _command("train", "pipeline.commands.train", "Train a model, or resume from its newest checkpoint."),
    _command(
        "eval",
        "pipeline.commands.evaluate",
        "Measure loss and steps on the held-out text of the run's data, or the scores on public tasks.",
        attribute="evaluate",
    ),
    _command(
        "verify",
        "pipeline.commands.verify",
        "Check that training and inference are the same model: soft-masked forward against hard-pruned "
        "decoding.",
    ),
    _command(
        "generate", "pipeline.commands.generate", "Continue texts; every token takes only the steps it needs."
    ),
    _command(
        "compare",
        "pipeline.commands.compare",
        "Compare runs by held-out loss against inference FLOPs and time per token.",
    ),
    _command(
        "convergence",
        "pipeline.commands.convergence",
        "Show how fast the Jacobi sweeps of a model converge, on held-out text.",
    ),
    _command(
        "plan",
        "pipeline.commands.plan",
        "Estimate whether a run fits its devices, what it costs and how long it takes.",
    ),
    _command(
        "rehearse",
        "pipeline.commands.rehearse",
        "Execute the real training step of one rank in this process, without a GPU and without the other "
        "ranks.",
    ),
    _command(
        "submit",
        "cluster.commands.submit",
        "Submit a run to local processes, SLURM or Ray, with the file that trains on a laptop.",
    ),
    _command(
        "report",
        "pipeline.commands.report",
        "Write the report of a run: a self-contained HTML file with curves, results and a sample.",
    ),
    _command(
        "doctor",
        "pipeline.commands.doctor",
        "Check whether this machine has what the program needs, and say how to cure what is missing.",
    ),
    _command(
        "parity",
        "pipeline.commands.parity",
        "Check that a parallel layout trains as one process does: is this difference normal?",
    ),
    _group("checkpoint", "pipeline.commands.checkpoint", "List, verify, compare and rewrite checkpoints."),
    _group(
        "config", "pipeline.commands.config", "Explain settings; write the schema of configuration files."
    ),
    _group("convert", "pipeline.commands.convert", "Convert models from and to Hugging Face folders."),
    _group(
        "data", "pipeline.commands.data", "Turn raw text into token shards; inspect, convert and index them."
    ),
    _group("jobs", "cluster.commands.jobs", "Watch, stop and restart submitted jobs, wherever they run."),
    _group(
        "recipes",
        "pipeline.commands.recipes",
        "List, show and copy the recipes that `--config` knows by name.",
    ),
    _group("tokenizer", "pipeline.commands.tokenizer", "Train tokenizers."),
)
"""All commands, in the order of the help; their modules are imported when they are called."""


class _Commands(LazyGroup):
    """The commands of `megaponder`; paths among their arguments are expanded."""

    entries = COMMANDS

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, current_spelling(args))

    def get_params(self, ctx: Any) -> list[Any]:
        return without_obvious_types(super().get_params(ctx))

    def load(self, name: str) -> Any:
        command = super().load(name)
        _expand_paths_of(command)
        hide_obvious_types(command)
        return command


app = typer.Typer(
    name="megaponder",
    cls=_Commands,
    help="Pretrain language models that decide per token how long to think, on Megatron-Core.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # Commands inherit it.
    context_settings={"help_option_names": ["--help", "-h"]},
    # Keep Python's own traceback for crashes: plain text in the logs of jobs.
    pretty_exceptions_enable=False,
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        say(f"megaponder {version('megaponder')}")
        raise typer.Exit


@app.callback()
def _program(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Make a group of the program, whose commands are in the table."""


# What pydantic, with which typer converts values, puts before a message.
_PYDANTIC_PREFIX = "Value error, "
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
    try:
        # Not `app()`, which replaces the hook for crashes.
        code: int | None = get_command(app)(standalone_mode=False)
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
    message = _with_hint(error.format_message().replace(_PYDANTIC_PREFIX, ""), error)
    # Without a message, the help has been shown.
    if context is not None and message:
        say(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n", err=True)
    if message:
        say(f"error: {message}", err=True)


def _with_hint(message: str, error: typer.TyperException) -> str:
    """Return the message of an error of the command line, with what was probably meant."""
    typed = sys.argv[1:]
    command = getattr(getattr(error, "ctx", None), "command", None)
    takes_settings = any(option.name == "overrides" for option in getattr(command, "params", ()))
    option = getattr(error, "option_name", None)
    if takes_settings and option is not None and option.startswith("--"):
        from pipeline.config.aliases import setting_named

        setting = setting_named(option.removeprefix("--"))
        if setting is not None:
            return f"No such option: {option}. Did you mean {setting}={_value_after(option, typed)}?"
    if takes_settings and getattr(getattr(error, "param", None), "name", None) == "config":
        from pipeline.config.recipes import find_recipe

        files = [word for word in typed if word.endswith((".yaml", ".yml")) or find_recipe(word) is not None]
        return f"{message} Did you mean --config {files[0]}?" if files else message
    return message


def _value_after(option: str, typed: list[str]) -> str:
    """Return the value that was typed with an option, after a space or an equals sign."""
    for word, following in zip(typed, [*typed[1:], "-"], strict=True):
        name, separator, value = word.partition("=")
        if name == option:
            return value if separator else "true" if following.startswith("-") else following
    return "VALUE"


if __name__ == "__main__":
    main()
