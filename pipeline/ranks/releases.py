"""The releases of Megatron-Core that this project runs on."""

from importlib.metadata import version

from pipeline.shared.errors import UserError

FIRST, LAST = (0, 16), (0, 18)


class ReleaseError(UserError):
    """Megatron-Core is installed in a release that cannot be used."""


def check_megatron_release(installed: str | None = None) -> None:
    """Check the installed release, without importing it.

    Args:
        installed: the release; None asks for that of this environment.
    Raises:
        ReleaseError: it is older or newer than those that are tested.
    """
    installed = installed or version("megatron-core")
    release = tuple(int(part) for part in installed.split(".")[:2])
    if FIRST <= release <= LAST:
        return
    reason = (
        "its data parallelism asks for a CUDA stream on a CPU too, which ends every step with several ranks"
        if release > LAST
        else "it lacks what the schedules and the optimizer of this project use"
    )
    raise ReleaseError(
        f"megatron-core must be of a release from {_name(FIRST)} to {_name(LAST)}, but {installed} is "
        f"installed: {reason}; install megatron-core==0.16.1 (on Python 3.11) or 0.18.2 (on 3.12 and later)"
    )


def _name(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]}"
