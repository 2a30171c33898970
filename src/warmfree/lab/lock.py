"""One process at a time in a folder."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # not a POSIX system: there is no lock, as the docstring says
    fcntl = None  # type: ignore[assignment]

__all__ = ["LockedError", "exclusive"]


class LockedError(RuntimeError):
    """Another process holds the lock."""


@contextlib.contextmanager
def exclusive(path: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock on a file while the block runs; the system frees it when the process ends, however it ends.

    On systems, and on file systems, without ``flock`` nothing is locked.

    Args:
        path: the lock file; created when missing, left in place.
        wait: seconds to wait for another process, >= 0.

    Raises:
        LockedError: another process still holds the lock after ``wait`` seconds.
        OSError: the file cannot be created.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> with exclusive(path), exclusive(path):
        ...     pass
        Traceback (most recent call last):
        ...
        warmfree.lab.lock.LockedError: ...
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + wait
        while not _try_lock(handle):
            if time.monotonic() >= deadline:
                holder = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
                raise LockedError(f"{path} is locked by another process (process {holder})")
            time.sleep(0.05)
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode("ascii"))
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
