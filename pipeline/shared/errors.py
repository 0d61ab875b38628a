"""Errors for users: the message says what must hold, what was found, and how to fix it.

A command ends with the message and the error's exit code. Every other exception is a crash and keeps its
traceback.
"""

from typing import ClassVar

from pipeline.shared.exit_codes import ExitCode


class UserError(Exception):
    """Base of the errors that a user can act on."""

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class DataError(UserError, ValueError):
    """Data cannot be used."""


class ConversionError(UserError):
    """A model cannot be converted."""


class ClusterError(UserError):
    """A cluster refuses a job, or cannot be reached."""


class UnreachableClusterError(ClusterError):
    """A cluster does not respond now, but may do so again."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is missing, damaged, of another model, or cannot be written."""

    exit_code: ClassVar[ExitCode] = ExitCode.DO_NOT_REQUEUE


class NoCheckpointError(CheckpointError):
    """There is no run or checkpoint at the path that was given."""

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class UnwritableOutputError(UserError):
    """The folder of a run cannot be written."""


class DiskFullError(UserError):
    """There is no space for what a run writes."""

    exit_code: ClassVar[ExitCode] = ExitCode.DO_NOT_REQUEUE


class OutOfMemoryError(UserError):
    """A rank needs more memory than its device has."""

    exit_code: ClassVar[ExitCode] = ExitCode.DO_NOT_REQUEUE
