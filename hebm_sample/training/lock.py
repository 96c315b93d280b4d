"""One run in one folder: a lock that the system releases when its process ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hebm_sample.errors import UserInputError
from hebm_sample.io.lock import LOCK_NAME, take

__all__ = ["LOCK_NAME", "locked"]

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
        if not take(file.fileno()):
            raise UserInputError(
                f"another process is training in {folder}; wait for it, or choose another folder"
            )
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)
