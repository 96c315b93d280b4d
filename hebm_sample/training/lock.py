"""One run in one folder: a lock that the system releases when its process ends."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hebm_sample.errors import UserInputError

__all__ = ["LOCK_NAME", "locked"]

LOCK_NAME = ".hebm-lock"
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
_held: set[str] = set()  # by this process, which may enter once more


@contextmanager
def locked(folder: Path, main: bool = True) -> Iterator[None]:
    """Hold the folder's lock; `UserInputError` if another process holds it.

    Arguments:
        folder: Of the run; it must exist.
        main: Whether this is the process that holds it: of several that share a run, the first.
    """
    key = os.path.realpath(folder)
    if not main or key in _held:
        yield
        return
    with open(os.path.join(key, LOCK_NAME), "a+b") as file:
        try:
            _take(file)
        except OSError as error:
            # Some network disks have no locks; a run goes on there without.
            if error.errno in _TAKEN:
                raise UserInputError(
                    f"another process is training in {folder}; wait for it, or choose another "
                    "folder"
                ) from error
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)


def _take(file: Any) -> None:
    if os.name == "nt":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
