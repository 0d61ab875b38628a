"""Arguments, logging and error handling shared by several commands."""

import errno
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer

from pipeline.commands.spellings import STANDARD_OUTPUT
from pipeline.ranks.environment import LauncherError, Ranks, threads_given
from pipeline.shared.console import printable, say
from pipeline.shared.errors import UserError
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.files import DISK_FULL, write_atomically

logger = logging.getLogger(__name__)

_CURES = {
    **dict.fromkeys(DISK_FULL, "free some space, or choose another place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions, or choose another place"),
    errno.EROFS: "its file system is read-only; choose another place",
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "remove what is in the way"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.EILSEQ), "choose another name"),
    errno.ELOOP: "its links lead back to themselves",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "too many files are open; raise `ulimit -n`"),
}
NOTICES_LOGGER = "pipeline.config"
# They are one process, also where a launcher has left its variables behind.
_SINGLE_PROCESS_COMMANDS = (
    *("checkpoint", "config", "convert", "data", "demo", "doctor", "jobs", "parity"),
    *("plan", "recipes", "rehearse", "report", "submit", "tokenizer"),
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE...",
        help="Settings that override the file: group.key=value, or Megatron's name (train-iters=100). "
        "Values are YAML; if a setting is given twice, the last value counts.",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="YAML file with the settings of a run, or the name of a recipe (`megaponder recipes list`).",
    ),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Folder of a run, or of its checkpoints (the newest is taken), or one of its iter_ folders.",
    ),
]
Iteration = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Take the checkpoint of this iteration.", show_default=False),
]

JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the result as JSON; `-` prints it in place of the table.",
        show_default=False,
    ),
]

OtherData = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Folder of the data, in place of the one that the run stored; of the same tokenizer.",
        show_default=False,
    ),
]


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the process with a message and an exit code, instead of a traceback, on what a user can cure.

    That is a :class:`UserError`, and what the system says of a file: in the way, read-only, without
    permission or space, or one too many.
    """
    try:
        yield
    except UserError as error:
        if _reports_errors():
            say(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        cure = _CURES.get(error.errno or 0)
        if cure is None:
            raise
        logger.debug("what the system refused", exc_info=True)
        if _reports_errors():
            name = "a file" if error.filename is None else error.filename
            say(f"error: {name} cannot be used ({error.strerror}); {cure}", err=True)
        sys.exit(ExitCode.USAGE)


def report_notices_once() -> None:
    """Let only the first rank report renamed settings: all ranks read the same configuration."""
    if not _reports_errors():
        logging.getLogger(NOTICES_LOGGER).setLevel(logging.ERROR)


def ignore_leftover_variables() -> None:
    """Forget what other tools have left in the environment and no command understands."""
    if "OMP_NUM_THREADS" in os.environ and threads_given(os.environ) is None:
        # A library would take all cores, or refuse to start.
        del os.environ["OMP_NUM_THREADS"]


def _reports_errors() -> bool:
    """Return whether this process reports what all ranks find: it is the first, or not one of them."""
    if sys.argv[1:2] and sys.argv[1] in _SINGLE_PROCESS_COMMANDS:
        return True
    try:
        return Ranks.from_environment().rank == 0
    except LauncherError:
        return True


def show_or_write(show: Callable[[], None], content: object, file: Path | None) -> None:
    """Show the result of a command, and write it to the file of ``--json``, if any.

    Args:
        show: prints the result for people.
        content: the result, as values of JSON.
        file: where it goes; ``-`` prints it instead.
    """
    show_or_write_text(show, json.dumps(content, indent=1), file)


def show_or_write_text(show: Callable[[], None], text: str, file: Path | None) -> None:
    """Do the same with a text of JSON."""
    if file == Path(STANDARD_OUTPUT):
        say(text)
        return
    show()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, f"{text}\n")
        say(f"written to {file}")


def examples(*lines: str) -> str:
    """Return example command lines, formatted as the epilog of a help text."""
    return "\n\n".join(["Examples:", *lines])


def set_up_logging(*, speaks: bool = True) -> None:
    """Log to standard error.

    Args:
        speaks: False for ranks other than the first, which log warnings only.
    """
    handler = _CurrentStderrHandler()
    handler.setFormatter(
        _PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    )
    logging.basicConfig(level=logging.INFO if speaks else logging.WARNING, handlers=[handler])
    logging.getLogger("megatron").setLevel(logging.WARNING)
    # Its first import on a machine logs that it searches for fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    # Our own log reports once that apex and Transformer Engine are absent; other warnings are for Megatron's
    # developers.
    for module in (r"megatron\.core", r"torch\.distributed\.checkpoint"):
        warnings.filterwarnings("ignore", module=module)


class _CurrentStderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what is standard error at the time: a progress bar replaces it, to draw itself below."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _PrintableFormatter(logging.Formatter):
    """Formats records, and the tracebacks in them, without control characters from outside."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def speaks() -> bool:
    """Return whether this process is rank 0, which prints results."""
    return Ranks.from_environment().rank == 0
