"""Memory that a step frees stays with the process, for the next step.

A step frees all that it takes, tensors of megabytes. The C library of most Linux systems (glibc)
gives such memory back at once and takes it again page by page, filled with zeros by the system,
which costs a chain's step up to a tenth of its time.
"""

import ctypes
import os
import sys
from functools import cache

__all__ = ["keep_freed_memory"]

# mallopt's numbers in glibc's malloc.h, and bytes
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
KEPT = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 128 << 20, TOP_PAD: 64 << 20}
# A training step frees all of a batch's activations.
KEPT_IN_TRAINING = KEPT | {TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 256 << 20}
CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@cache
def keep_freed_memory(*, training: bool = False) -> bool:
    """Tell glibc to keep up to 128 MiB that were freed, in training 2 GiB, and tensors of up to
    32 MiB among them.

    Does nothing, and says False, where there is another C library, or where the environment says
    how glibc should do it.
    """
    if not sys.platform.startswith("linux") or any(x in os.environ for x in CHOSEN_BY_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018 (musl has none)
    except (OSError, AttributeError):
        return False
    return all(
        [
            mallopt(what, size) == 1
            for what, size in (KEPT_IN_TRAINING if training else KEPT).items()
        ]
    )
