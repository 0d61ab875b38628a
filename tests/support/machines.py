"""Ways in which the machines of users differ from this one, for processes that become a command."""

import ctypes
import errno
import fcntl
import os
import resource
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

_CLONE_NEWUTS, _CLONE_NEWNET, _CLONE_NEWNS = 0x04000000, 0x40000000, 0x00020000
_SECONDS_PER_YEAR = 31_557_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine on which commands run.

    Attributes:
        name: for the list of results.
        variables: of the environment; None: not set.
        before: what a process does before it becomes a command.
        folder: name of the folder of inputs and outputs.
        is_quick: whether it is tried in every run of the tests.
    """

    name: str
    variables: Mapping[str, str | None] = field(default_factory=dict)
    before: Callable[[], object] | None = None
    folder: str = "files"
    is_quick: bool = False


def limit(kind: int, amount: int) -> None:
    """Set a limit of this process."""
    resource.setrlimit(kind, (amount, resource.getrlimit(kind)[1]))


def set_clock(years: int) -> None:
    """Let the clock of this process differ from the machine's."""
    now = time.time
    time.time = lambda: now() + years * _SECONDS_PER_YEAR


def refuse_locks() -> None:
    """Let no file be locked, as on some network file systems."""

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = refuse
    fcntl.lockf = refuse


def refuse_to_sync_folders() -> None:
    """Let no folder be flushed, as on some network file systems."""
    fsync = os.fsync

    def refuse(file: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{file}"):  # noqa: PTH112 (a descriptor)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(file)

    os.fsync = refuse  # type: ignore[assignment]


def leave_namespace(flags: int) -> None:
    """Give this process a namespace of its own."""
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def rename_host() -> None:
    """Give the machine a name that nobody can resolve."""
    leave_namespace(_CLONE_NEWUTS)
    socket.sethostname("no-such-host.invalid")


def lose_network() -> None:
    """Leave a machine on which even the loopback device is down."""
    leave_namespace(_CLONE_NEWNET)


def close_stdin() -> None:
    """Close standard input."""
    os.close(0)


def use_one_cpu() -> None:
    """Run on one CPU."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def forget_user() -> None:
    """Be a user whom the database of users does not know."""
    import pwd

    def refuse(_user: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    pwd.getpwuid = refuse  # type: ignore[assignment]


def hide_shared_memory() -> None:
    """Leave no shared memory: /dev/shm is a folder that cannot be written."""
    leave_namespace(_CLONE_NEWNS)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount(b"none", b"/", None, 1 << 14 | 1 << 18, None)
    if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 1, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def ignore_signals() -> None:
    """Ignore what `nohup` and the background of a shell ignore."""
    import signal

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)


_SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "2",
}
_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "PMI_RANK": "1", "PMI_SIZE": "4"}
_PROXY = dict.fromkeys(
    ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"
)

MACHINES = (
    Machine(name="the C locale", variables={"LC_ALL": "C", "LANG": "C"}),
    Machine(
        name="a locale that is not installed", variables={"LC_ALL": "tr_TR.ISO-8859-9", "LANGUAGE": "tr"}
    ),
    Machine(name="an ASCII terminal", variables={"PYTHONIOENCODING": "ascii"}, is_quick=True),
    Machine(name="a Latin-1 terminal", variables={"PYTHONIOENCODING": "latin-1"}),
    Machine(name="another time zone", variables={"TZ": "Asia/Kathmandu"}),
    Machine(name="a time zone that does not exist", variables={"TZ": "No/Where"}),
    Machine(name="a clock fifty years ahead", before=partial(set_clock, 50)),
    Machine(name="a clock at the epoch", before=partial(set_clock, -56)),
    Machine(name="umask 077", before=partial(os.umask, 0o077)),
    Machine(name="umask 000", before=partial(os.umask, 0)),
    Machine(name="spaces in folder names", folder="a folder  with spaces "),
    Machine(name="folder names that are not ASCII", folder="caf\u00e9 \u4e16\u754c \U0001f600"),
    Machine(
        name="shell and YAML characters in folder names",
        folder="a #1: 'b' \"c\" $d `e` {f} %g !h &i *j",
        is_quick=True,
    ),
    Machine(name="markup and wildcards in folder names", folder="[red] [/b] *.txt ?"),
    Machine(name="folder names with a leading dash or tilde", folder="~-a"),
    Machine(name="long folder names", folder="x" * 200),
    Machine(name="file locks refused", before=refuse_locks),
    Machine(name="folders cannot be flushed", before=refuse_to_sync_folders),
    Machine(name="64 open files", before=partial(limit, resource.RLIMIT_NOFILE, 64)),
    Machine(name="a stack of 1 MB", before=partial(limit, resource.RLIMIT_STACK, 1 << 20)),
    Machine(name="no locked memory", before=partial(limit, resource.RLIMIT_MEMLOCK, 0)),
    Machine(name="no shared memory", before=hide_shared_memory),
    Machine(name="one CPU", before=use_one_cpu),
    Machine(name="proxies that are dead", variables=_PROXY),
    Machine(name="variables of SLURM", variables=_SLURM),
    Machine(name="variables of MPI", variables=_MPI),
    Machine(name="a Ray address", variables={"RAY_ADDRESS": "http://127.0.0.1:9"}),
    Machine(
        name="a GPU that does not exist",
        variables={"CUDA_VISIBLE_DEVICES": "99", "NVIDIA_VISIBLE_DEVICES": "99"},
    ),
    Machine(name="HOME not set", variables={"HOME": None, "USER": None, "LOGNAME": None}, is_quick=True),
    Machine(
        name="HOME that does not exist", variables={"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"}
    ),
    Machine(
        name="a user without a name",
        variables={"HOME": "/nonexistent", "USER": None, "LOGNAME": None},
        before=forget_user,
    ),
    Machine(name="TMPDIR that does not exist", variables={"TMPDIR": "/nonexistent"}, is_quick=True),
    Machine(name="TERM not set", variables={"TERM": None, "COLUMNS": None}),
    Machine(name="TERM=dumb", variables={"TERM": "dumb"}),
    Machine(name="one column", variables={"COLUMNS": "1", "LINES": "1"}),
    Machine(name="columns that are no number", variables={"COLUMNS": "wide"}),
    Machine(name="colours forced", variables={"FORCE_COLOR": "1"}),
    Machine(name="colours forbidden", variables={"NO_COLOR": "1"}),
    Machine(name="standard input closed", before=close_stdin),
    Machine(name="signals ignored, as by nohup", before=ignore_signals),
    Machine(name="a host name that nobody resolves", before=rename_host, is_quick=True),
    Machine(name="no network, not even loopback", before=lose_network),
    Machine(name="an empty PATH", variables={"PATH": ""}),
    Machine(name="threads that are no number", variables={"OMP_NUM_THREADS": "many", "MKL_NUM_THREADS": "0"}),
    Machine(name="a hash seed", variables={"PYTHONHASHSEED": "7"}),
    Machine(
        name="bytecode not written",
        variables={"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "/nonexistent"},
    ),
)
