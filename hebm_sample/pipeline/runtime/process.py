"""What makes chains faster and holds for the whole process: a command's to decide.

No call of the library changes its process: not how memory is freed, not Python's switch interval,
not torch's threads. Commands call `tune_process` when they start, and so can a script whose
process is its own.
"""

import sys

from hebm_sample.pipeline.runtime.malloc import keep_freed_memory
from hebm_sample.pipeline.runtime.threads import TURN, allow_parts

__all__ = ["tune_process"]


def tune_process(*, training: bool = False) -> None:
    """Give this process to sampling, or to training; docs/performance.md says what each is worth.

    - Memory that a step frees stays with the process (`runtime/malloc.py`).
    - Python's lock changes hands after a millisecond (`sys.setswitchinterval`).
    - Parts of a batch on the CPU are sampled at the same time; while they are, torch's number of
      threads is divided among them (`runtime/threads.py`).

    Images are the same to rounding: at most 2 of 255 levels apart.

    Arguments:
        training: Keep more memory: a training step frees all of a batch's activations.
    """
    keep_freed_memory(training=training)
    # Whoever calls short operations only takes Python's lock back before another has woken up.
    sys.setswitchinterval(min(sys.getswitchinterval(), TURN))
    allow_parts()
