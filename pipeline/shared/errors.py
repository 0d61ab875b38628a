"""Errors meant for users: the text says what must hold, what was found, and the cure.

A command ends with the error's text and its exit code. Every other exception is a crash and keeps its
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


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is absent, damaged, of another model, or cannot be written."""

    exit_code: ClassVar[ExitCode] = ExitCode.DO_NOT_REQUEUE
