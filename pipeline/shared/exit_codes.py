"""Exit codes of every `megaponder` command; schedulers and launchers read them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a finished process tells whoever started it."""

    DONE = 0
    """Finished, or stopped early as planned."""
    CRASH = 1
    """An error nobody handled, or a check that did not pass."""
    USAGE = 2
    """The command line or the configuration is wrong; nothing was started."""
    NOT_SUPPORTED = 3
    """A check met a case that this version cannot compute."""
    RESUME_TO_DISAMBIGUATE = 16
    """Megatron's code: resume on other hardware to tell a fault apart."""
    FAILED_VALIDATION = 17
    """Megatron's code: a repeated computation gave another result."""
    REQUEUE = 75
    """Told to stop, with a checkpoint, or hung: start the same command again to go on from the newest one.
    Generation that is told to stop by SIGTERM starts from the first prompt."""
    DO_NOT_REQUEUE = 93
    """Starting again cannot help: divergence, or a configuration that no longer fits its checkpoint."""
    INTERRUPTED = 130
    """Stopped from the keyboard before there was anything to save (128 + SIGINT)."""


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
