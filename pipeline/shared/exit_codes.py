"""Exit codes of every `megaponder` command; schedulers and launchers read them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The outcome of a process, for whoever started it."""

    DONE = 0
    """Finished, or stopped early as planned."""
    CRASH = 1
    """An unhandled error, or a check that failed."""
    USAGE = 2
    """The command line or the configuration is invalid; nothing was started."""
    NOT_SUPPORTED = 3
    """A check met a case that this version does not support."""
    RESUME_TO_DISAMBIGUATE = 16
    """Megatron's code: resume on other hardware to identify a fault."""
    FAILED_VALIDATION = 17
    """Megatron's code: a repeated computation had another result."""
    REQUEUE = 75
    """Stop signal received, with a checkpoint saved, or hung: the same command resumes from the newest one.
    Generation starts again from the first prompt."""
    DO_NOT_REQUEUE = 93
    """A restart cannot help: divergence, or a configuration that does not match its checkpoint."""
    INTERRUPTED = 130
    """Interrupted from the keyboard before there was anything to save (128 + SIGINT)."""


# Codes that another start of the same command would end with as well, or that a user asked for.
FINAL_CODES = (
    ExitCode.DONE,
    ExitCode.USAGE,
    ExitCode.NOT_SUPPORTED,
    ExitCode.FAILED_VALIDATION,
    ExitCode.DO_NOT_REQUEUE,
    ExitCode.INTERRUPTED,
)
# Codes with which all ranks leave together, by agreement; any other one is the failure of a single rank.
AGREED_CODES = (ExitCode.USAGE, ExitCode.REQUEUE, ExitCode.DO_NOT_REQUEUE, ExitCode.INTERRUPTED)
