"""Errors meant for users: which exit code each has. Everything else is a crash and keeps its traceback."""

from cluster.errors import ClusterError
from data_prep.errors import DataError
from pipeline.checkpoint.errors import CheckpointError
from pipeline.config.errors import ConfigError
from pipeline.conversion.errors import ConversionError
from pipeline.shared.exit_codes import ExitCode

EXIT_CODES: dict[type[Exception], ExitCode] = {
    ConfigError: ExitCode.USAGE,
    DataError: ExitCode.USAGE,
    ConversionError: ExitCode.USAGE,
    ClusterError: ExitCode.USAGE,
    CheckpointError: ExitCode.DO_NOT_REQUEUE,
}

USER_ERRORS = tuple(EXIT_CODES)


def exit_code_of(error: Exception) -> ExitCode:
    """Return the exit code of an error that is meant for users."""
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
