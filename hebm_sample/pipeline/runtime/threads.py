"""Parts of a batch at the same time, each on cores of its own.

torch shares each operation out among its threads and waits for the slowest of them, a thousand
times a step. Chains know nothing of one another: halves of a batch that run in two threads wait
for each other once per level. It takes a few images a part to be worth it.

Meanwhile torch's number of threads is another one in the whole process, so parts are for processes
that allowed them (`runtime/process.py`).
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from threading import Event, Lock
from typing import TypeVar

import torch

__all__ = [
    "FEWEST",
    "TURN",
    "Stop",
    "Stopped",
    "allow_parts",
    "part_bounds",
    "part_threads",
    "in_threads",
]

FEWEST = 4  # images in a part
MOST = 512  # threads of a process that make parts
TURN = 1e-3  # seconds that a thread may keep Python's lock while others wait for it

_T = TypeVar("_T")
_allowed = Event()


def allow_parts(allowed: bool = True) -> None:
    """Whether batches of this process may be cut into parts; they may not at first."""
    _allowed.set() if allowed else _allowed.clear()


def part_threads() -> int:
    """Parts of a batch that may be computed at the same time."""
    return torch.get_num_threads() if _allowed.is_set() else 1


class Stopped(Exception):
    """Another part failed or was interrupted."""


class Stop:
    """Ends the other parts soon after one has failed: they call it after each gradient."""

    def __init__(self) -> None:
        self.event = Event()

    def __call__(self, _: int = 0) -> None:
        """Raises `Stopped` once it is set."""
        if self.event.is_set():
            raise Stopped


def part_bounds(count: int, threads: int) -> list[tuple[int, int]]:
    """Start and end of each part of `count` images: as many as threads, none below `FEWEST`,
    sizes as equal as can be.
    """
    parts = max(1, min(threads, count // FEWEST))
    ends = [count * k // parts for k in range(parts + 1)]
    return list(zip(ends, ends[1:], strict=False))


class _Sharing:
    """torch's number of threads, as it should be while parts are made; afterwards what it was, and
    where batches overlap what it was before the first of them.
    """

    def __init__(self) -> None:
        self.lock, self.users, self.before = Lock(), 0, 1

    @contextmanager
    def __call__(self, threads: int) -> Iterator[None]:
        with self.lock:
            if self.users == 0:
                self.before = torch.get_num_threads()
            self.users += 1
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                torch.set_num_threads(self.before)


_shared = _Sharing()


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that all batches of this process share: a new one is made where none is idle."""
    return ThreadPoolExecutor(MOST, "part")


if hasattr(os, "register_at_fork"):  # a child has none of these threads, and would wait for ever
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _next(walk: Iterator[_T], threads: int) -> _T | None:
    """The next item, with so many of torch's threads, or None."""
    # torch asks each new thread how many threads it may use, and the answer holds for it alone.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return next(walk, None)


def in_threads(walks: Sequence[Iterator[_T]], stop: Stop) -> Iterator[tuple[_T, ...]]:
    """As `zip(*walks, strict=True)`, but the items of a tuple are made at the same time.

    The caller's own thread makes the first, so what that one reports is reported there, and a
    Ctrl-C ends it.

    Arguments:
        walks: Two or more, of equal length.
        stop: To be called by all but the first, so that they end soon after another has failed.
    """
    each = max(1, torch.get_num_threads() // len(walks))
    others: list[Future[_T | None]] = []
    try:
        while True:
            with _shared(each):
                others = [_pool().submit(_next, walk, each) for walk in walks[1:]]
                items = [next(walks[0], None), *(other.result() for other in others)]
            made = [item for item in items if item is not None]
            if not made:
                return
            assert len(made) == len(walks)
            yield tuple(made)
    finally:
        stop.event.set()
        wait(others)  # a walk that still runs has what the caller is about to close
