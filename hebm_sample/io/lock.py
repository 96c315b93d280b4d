"""Locks that the system releases when their process ends."""

import errno
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from hebm_sample.errors import EnvironmentFailure

__all__ = ["LOCK_NAME", "exclusive", "take"]

LOCK_NAME = ".hebm-lock"  # a lock's file, where a folder itself cannot be locked
MOST_SECONDS = 60.0
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)


def take(descriptor: int) -> bool:
    """Lock an open file until it is closed; whether nobody else holds it. Some network disks have
    no locks: there it is True.
    """
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _TAKEN
    return True


@contextmanager
def exclusive(folder: Path, seconds: float = MOST_SECONDS) -> Generator[None]:
    """Be the only one to change a folder, of all processes and threads that ask; it leaves no file
    behind where folders can be locked.

    Raises:
        EnvironmentFailure: Somebody else has held it for `seconds`.
    """
    if os.name == "nt":
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT)
    else:
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + seconds
        while not take(descriptor):
            if time.monotonic() > end:
                raise EnvironmentFailure(
                    f"another process has been writing {folder} for {seconds:.0f} s; try again"
                )
            time.sleep(0.01)
        yield
    finally:
        _release(descriptor)
        os.close(descriptor)


def _release(descriptor: int) -> None:
    """At once, whoever else may have inherited the descriptor."""
    if os.name != "nt":
        import fcntl

        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
