"""Memory that this process may still take.

    min over what limits it of (limit - used + cache that can be given up)

A container's limit is that of its control group, of either version, or of one above it; the system
itself does not know of it.
"""

import os
from contextlib import suppress
from pathlib import Path, PurePosixPath

__all__ = ["free_memory"]

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
NO_LIMIT = 2**60  # version 1 writes a number near 2^63 for none
GUESS = 2**31

# Names of the files with limit, use and, in `memory.stat`, file cache that is not in use.
_SECOND = ("memory.max", "memory.current", "inactive_file")
_FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_memory() -> int:
    """Bytes that are free, as the system says; in a container, what it may still have."""
    found = [*_of_the_system(), *_of_the_groups()]
    if not found and hasattr(os, "sysconf"):
        with suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return max(0, min(found, default=GUESS))


def _of_the_system() -> list[int]:
    with suppress(OSError, ValueError, IndexError):
        lines = (PROC / "meminfo").read_text(encoding="ascii").splitlines()
        return [1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable")]
    return []


def _of_the_groups() -> list[int]:
    """What is left of each limit on the way from this process's control group to the root."""
    found: list[int] = []
    for home, path, names in _groups():
        parts = PurePosixPath(path.lstrip("/")).parts
        # In a container the root of what is mounted is its own group, whatever `path` says.
        for depth in range(len(parts) + 1):
            left = _left(home.joinpath(*parts[:depth]), names)
            found += [] if left is None else [left]
    return found


def _groups() -> list[tuple[Path, str, tuple[str, str, str]]]:
    """(where the hierarchy is mounted, the process's group in it, names of its files)."""
    found: list[tuple[Path, str, tuple[str, str, str]]] = [
        (CGROUP, "", _SECOND),
        (CGROUP / "memory", "", _FIRST),
    ]
    with suppress(OSError, ValueError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if ".." in path.split("/"):  # of a group outside the container's own
                continue
            if number == "0" and not controllers:
                found.append((CGROUP, path, _SECOND))
            elif "memory" in controllers.split(","):
                found.append((CGROUP / "memory", path, _FIRST))
    return found


def _left(group: Path, names: tuple[str, str, str]) -> int | None:
    limit_file, used_file, cache = names
    try:
        limit = int((group / limit_file).read_text())
        used = int((group / used_file).read_text())
    except (OSError, ValueError):  # "max", or no such group here
        return None
    if limit >= NO_LIMIT:
        return None
    with suppress(OSError, ValueError, IndexError):
        lines = (group / "memory.stat").read_text().splitlines()
        used -= sum(int(x.split()[1]) for x in lines if x.split()[:1] == [cache])
    return limit - used
