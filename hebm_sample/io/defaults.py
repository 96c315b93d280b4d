"""torch's default dtype and device belong to whoever set them, and change nothing here.

Sampling names both wherever it makes a tensor. Layers and optimisers take the defaults without
asking, draws of their initial weights included; where networks are made, trained or measured,
these are float32 and the CPU, as of a process that has set nothing.
"""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext

__all__ = ["usual_defaults"]


@contextmanager
def usual_defaults() -> Generator[None]:
    """float32 and the CPU until the end, then what was set before; also as a decorator. A default
    dtype is the whole process's, so other threads meet it meanwhile.
    """
    import torch

    dtype = torch.get_default_dtype()
    # Only where it is needed: torch asks a device that was set at every call.
    on_cpu = torch.empty(0).device.type == "cpu"
    if dtype != torch.float32:
        torch.set_default_dtype(torch.float32)
    try:
        with nullcontext() if on_cpu else torch.device("cpu"):
            yield
    finally:
        if dtype != torch.float32:
            torch.set_default_dtype(dtype)
