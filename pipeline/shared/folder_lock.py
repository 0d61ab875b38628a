"""One owner of a folder, or of an output: who it is, and what happens when it is gone.

The lock is a file, `.lock`, that the kernel locks for the owner, so that it ends with the process, and that
names the owner::

    {"host": ..., "boot": ..., "pid_namespace": ..., "pid": ..., "start_ticks": ...,
     "job": ..., "restart": ..., "work": "train", "token": ...}

Whether an owner still lives is known

- from the kernel, for processes under the same kernel, in containers too;
- from the scheduler, where the owner was an earlier start of this very job;
- else from its heartbeat, the time of the file: on other machines, and where a file system has no locks. Only
  its changes are compared, because the clocks of two machines may differ.

Processes that the owner starts are part of it: an environment variable carries the token of its lock.
"""

import errno
import fcntl
import glob
import json
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pipeline.shared.errors import DataError
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.files import remove_temporaries, resolved_output
from pipeline.shared.process_identity import ProcessIdentity

__all__ = ["LOCK_NAME", "FolderInUseError", "Owner", "folder_lock", "output_lock", "read_owner"]

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
# Tokens of the locks that this process and those that started it hold.
_TOKENS_VARIABLE = "MEGAPONDER_LOCK_TOKENS"
_BEAT_SECONDS = 5.0
# Of an owner on another machine: six heartbeats.
_SILENCE_SECONDS = 30.0
# No clocks of machines that share a folder differ by as much.
_LONG_AGO_SECONDS = 3600.0
# A process that was killed gives back its memory before its locks.
_LEAVING_SECONDS = 60.0
_POLL_SECONDS = 0.2
# For another writer of a lock to finish, where the kernel cannot keep two apart.
_SETTLE_SECONDS = 0.5
_LONGEST_LOCK_BYTES = 4096
_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class FolderInUseError(DataError):
    """Another process writes the folder.

    Attributes:
        owner: that process; None where its lock does not name it.
    """

    def __init__(self, message: str, *, owner: "Owner | None") -> None:
        super().__init__(message)
        self.owner = owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host, boot, pid_namespace, pid, start_ticks: see `ProcessIdentity`.
        job: the scheduler's id of its job; None outside of one.
        restart: how often the scheduler had restarted that job.
        work: what it does, as a command.
        token: different for every lock that was ever taken.
    """

    host: str
    boot: str
    pid_namespace: str
    pid: int
    start_ticks: int
    job: str | None
    restart: int
    work: str
    token: str

    @property
    def process(self) -> ProcessIdentity:
        """The process."""
        names = [field.name for field in fields(ProcessIdentity)]
        return ProcessIdentity(**{name: getattr(self, name) for name in names})

    def __str__(self) -> str:
        job = "" if self.job is None else f", job {self.job}"
        text = f"`{self.work}`, process {self.pid} on {self.host}{job}"
        # The file may have been written by anybody.
        return "".join(letter if letter.isprintable() else "?" for letter in text)


@contextmanager
def folder_lock(folder: Path, work: str = "megaponder") -> Iterator[None]:
    """Be the one writer of a folder, which is created if it does not exist.

    Folders that were created are removed at the end if they are empty.

    Args:
        folder: the lock lies in it.
        work: what this process does, as a command.
    Raises:
        FolderInUseError: another process writes it.
        DataError: it cannot be written.
    """
    with _created(folder), _held(folder / LOCK_NAME, folder, work):
        yield


@contextmanager
def output_lock(output: Path, work: str = "megaponder") -> Iterator[None]:
    """Be the one writer of a file, or of a folder that must be absent or empty: the lock lies beside it.

    Args, Raises:
        see `folder_lock`.
    """
    # Two names of one folder, one of them a link or relative, are one output.
    resolved = resolved_output(output)
    lock = resolved.with_name(f".{resolved.name}{LOCK_NAME}")
    with _created(resolved.parent), _held(lock, output, work):
        remove_temporaries(resolved.parent, glob.escape(resolved.name))
        yield


def read_owner(folder: Path) -> Owner | None:
    """Return who writes a folder now, or did until it was killed; None if nobody does. Changes nothing."""
    try:
        descriptor = _open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        owner = _read(descriptor)
        if owner is None or (owner.process.is_visible and owner.process.state is None):
            return None
        return owner
    finally:
        os.close(descriptor)


@contextmanager
def _created(folder: Path) -> Iterator[None]:
    """Create a folder, and remove at the end what was created and is empty."""
    made = _create(folder)
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _create(folder: Path) -> list[Path]:
    """Create a folder and those above it; return those that did not exist, the innermost first."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise
        raise _not_writable(folder, error) from error
    return missing


def _not_writable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder} must be a folder that this command may write, but is not ({error.strerror}); give another "
        "one, or change its permissions"
    )


@contextmanager
def _held(path: Path, place: Path, work: str) -> Iterator[None]:
    descriptor = _acquire(path, place)
    if descriptor is None:
        # Held by the process that started this one, or by this one.
        yield
        return
    with ExitStack() as cleanup:
        lock = _Lock(path, place, descriptor, work)
        cleanup.callback(lock.release)
        lock.announce()
        yield


def _acquire(path: Path, place: Path) -> int | None:
    """Return the descriptor of the locked file; None if this process is part of its owner.

    Raises:
        FolderInUseError: another process holds it.
        DataError: the file cannot be written.
    """
    leaving_until = time.monotonic() + _LEAVING_SECONDS
    while True:
        descriptor = _open_lock(path, place)
        try:
            is_ours = _lock_file(descriptor)
            owner = _read(descriptor)
            if owner is not None and owner.token in _own_tokens() and is_ours is not True:
                os.close(descriptor)
                return None
            if is_ours is False:
                if not _is_leaving(owner) or time.monotonic() > leaving_until:
                    raise _in_use(place, owner)
                os.close(descriptor)
                time.sleep(_POLL_SECONDS)
                continue
            if not _is_still(path, descriptor):
                # Its owner has removed it while this process waited for it.
                os.close(descriptor)
                continue
            if owner is not None:
                if _lives(owner, descriptor, path, knows_kernel=is_ours is True):
                    raise _in_use(place, owner)
                logger.warning("%s was being written by %s, which is gone: taking it over", place, owner)
            return descriptor
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise


def _open_lock(path: Path, place: Path) -> int:
    try:
        descriptor = _open(path, os.O_RDWR | os.O_CREAT)
    except PermissionError as error:
        _remove_of_other_user(path, place, error)
        return _open_lock(path, place)
    except FileNotFoundError:
        # An earlier owner has removed the folder, which it had created and left empty.
        _create(path.parent)
        return _open_lock(path, place)
    except OSError as error:
        if error.errno in (*_DISK_FULL, errno.EMFILE, errno.ENFILE):
            raise
        raise DataError(
            f"{place} must be a place that this command may write, but its lock {path} cannot be opened "
            f"({error.strerror}); give another one, or remove {path}"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path} must be a file that names who writes {place}, but is not; remove it")
    return descriptor


def _open(path: Path, flags: int) -> int:
    # A link may lead anywhere, and a pipe may have nobody at its other end.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def _remove_of_other_user(path: Path, place: Path, error: PermissionError) -> None:
    """Remove the lock of another user's process that is gone; it can be read, but not written.

    Raises:
        FolderInUseError: the process lives.
        DataError: the lock cannot be read or removed.
    """
    try:
        descriptor = _open(path, os.O_RDONLY)
    except OSError:
        raise _not_writable(place, error) from error
    try:
        is_ours, owner = _lock_file(descriptor), _read(descriptor)
        if is_ours is False or (
            owner is not None and _lives(owner, descriptor, path, knows_kernel=is_ours is True)
        ):
            raise _in_use(place, owner)
        path.unlink(missing_ok=True)
    except OSError:
        raise _not_writable(place, error) from error
    finally:
        os.close(descriptor)


def _lock_file(descriptor: int) -> bool | None:
    """Return whether the kernel gives the file to this process; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Network file systems report a lock that another machine holds as a lack of permission.
        if error.errno == errno.EACCES:
            return False
        if error.errno in _WITHOUT_LOCKS or error.errno == errno.EBADF:
            return None
        raise
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> Owner | None:
    """Return the owner that a lock names; None where it names none, as after an orderly end."""
    content = os.pread(descriptor, _LONGEST_LOCK_BYTES, 0)
    try:
        values = json.loads(content)
        owner = Owner(**values)
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = (owner.pid, owner.start_ticks, owner.restart)
    texts = (owner.host, owner.boot, owner.pid_namespace, owner.work, owner.token, owner.job or "")
    is_sound = all(type(number) is int for number in numbers) and all(type(text) is str for text in texts)
    return owner if is_sound and owner.pid > 0 else None


def _is_leaving(owner: Owner | None) -> bool:
    """Whether the owner was ended, and only gives back what it holds."""
    if owner is None or not owner.process.is_visible:
        return False
    state = owner.process.state
    return state is None or state.is_leaving


def _lives(owner: Owner, descriptor: int, path: Path, *, knows_kernel: bool) -> bool:
    """Return whether the owner of a lock still runs; this may take half a minute for one on another machine.

    Args:
        knows_kernel: the kernel has given the file to this process.
    """
    if owner.process.is_same_boot and knows_kernel:
        return False
    if owner.process.is_visible:
        return owner.process.state is not None
    job, restart = _job()
    if job is not None and job == owner.job and restart > owner.restart:
        return False
    return _beats(owner, descriptor, path)


def _beats(owner: Owner, descriptor: int, path: Path) -> bool:
    """Wait for a change of an owner's heartbeat; return False if none comes while it may be silent."""
    first = os.fstat(descriptor).st_mtime
    if abs(time.time() - first) > _LONG_AGO_SECONDS:
        return False
    logger.warning("%s is held by %s: waiting up to %.0f s for a sign of life", path, owner, _SILENCE_SECONDS)
    end = time.monotonic() + _SILENCE_SECONDS
    while time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
        # Opened again: network file systems only then ask the server.
        try:
            again = _open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            if os.fstat(again).st_mtime != first or _read(again) != owner:
                return _read(again) is not None
        finally:
            os.close(again)
    return False


def _in_use(place: Path, owner: Owner | None) -> FolderInUseError:
    who = "another process" if owner is None else str(owner)
    return FolderInUseError(
        f"only one command may write {place} at a time, but {who} is writing it now; wait for it, stop "
        "it, or choose another folder",
        owner=owner,
    )


class _Lock:
    """A lock that this process holds.

    Args:
        path: of the file.
        place: what is locked, for messages.
        descriptor: of the file, locked.
        work: what this process does.
    """

    def __init__(self, path: Path, place: Path, descriptor: int, work: str) -> None:
        job, restart = _job()
        process = ProcessIdentity.of_this_process()
        self._path, self._place, self._descriptor = path, place, descriptor
        self._owner = Owner(
            **asdict(process), job=job, restart=restart, work=work, token=secrets.token_hex(8)
        )
        self._is_released = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="folder lock", daemon=True)

    def announce(self) -> None:
        """Write who holds the lock, and begin its heartbeat.

        Raises:
            FolderInUseError: another process has taken it at the same moment.
        """
        # A forked process must not keep the lock when this one is killed.
        os.register_at_fork(after_in_child=self._close)
        self._write(json.dumps(asdict(self._owner)).encode())
        if _lock_file(self._descriptor) is None:
            time.sleep(_SETTLE_SECONDS)
            found = self._owner_now()
            if found is not None and found.token != self._owner.token:
                raise _in_use(self._place, found)
        os.environ[_TOKENS_VARIABLE] = " ".join([*_own_tokens(), self._owner.token])
        self._beats.start()

    def release(self) -> None:
        """Give the folder back."""
        self._is_released.set()
        if self._descriptor < 0:
            return
        tokens = [token for token in _own_tokens() if token != self._owner.token]
        os.environ[_TOKENS_VARIABLE] = " ".join(tokens)
        if not tokens:
            del os.environ[_TOKENS_VARIABLE]
        found = self._owner_now()
        is_own = found is None or found.token == self._owner.token
        # The folder may have been renamed, and another one may have its name.
        with suppress(OSError):
            if is_own and _is_still(self._path, self._descriptor):
                self._path.unlink()
            elif is_own:
                os.ftruncate(self._descriptor, 0)
        self._close()

    def _write(self, content: bytes) -> None:
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, content, 0)
            os.fsync(self._descriptor)
        except OSError as error:
            # The kernel still keeps others out, and what writes next reports the disk better.
            if error.errno not in _DISK_FULL:
                raise

    def _owner_now(self) -> Owner | None:
        try:
            return _read(self._descriptor)
        except OSError:
            return None

    def _beat(self) -> None:
        while not self._is_released.wait(_BEAT_SECONDS):
            found = self._owner_now()
            if found is not None and found.token != self._owner.token:
                self._leave(found)
            with suppress(OSError):
                os.utime(self._descriptor)

    def _leave(self, found: Owner) -> None:
        """End this process, which was taken for dead: two must never write."""
        logger.error(
            "%s was taken over by %s, because this process gave no sign of life; this process ends",
            self._place,
            found,
        )
        logging.shutdown()
        os._exit(ExitCode.DO_NOT_REQUEUE)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


def _own_tokens() -> list[str]:
    return os.environ.get(_TOKENS_VARIABLE, "").split()


def _job() -> tuple[str | None, int]:
    """Return the scheduler's id of this job, the same after a requeue, and how often it was restarted."""
    job = os.environ.get("SLURM_JOB_ID")
    restart = os.environ.get("SLURM_RESTART_COUNT", "")
    return (None if job is None else f"slurm:{job}"), int(restart) if restart.isdecimal() else 0
