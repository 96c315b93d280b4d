"""How many images fit at a time: `--batch auto`.

    batch = free memory / 2 / (2 * bytes that one image's gradient keeps)

What the gradient of F keeps is counted, for two images and for one, so that weights cancel; it
holds again as much in passing, and half of the memory is left to others. More than `MOST` images
at a time gain nothing.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["MOST", "bytes_per_image", "fitting_batch", "free_bytes"]

MOST = {"cpu": 64, "cuda": 1024}


def bytes_per_image(pipe: "Pipeline") -> int:
    """Bytes that the gradient of F keeps for each image."""

    def kept(batch: int) -> int:
        stores: dict[int, int] = {}

        def note(x: Tensor) -> Tensor:
            stores[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        shapes = pipe.generator.latent_shapes
        where: dict[str, Any] = {"device": pipe.device, "dtype": torch.float32}
        u = tuple(torch.zeros(batch, *s, **where, requires_grad=True) for s in shapes)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            terms = pipe.energy_terms(u, torch.zeros(batch, **where))
        # `terms` holds the graph until here: no address is given out twice.
        return sum(stores.values()) if terms.requires_grad else 0

    with torch.inference_mode(False), torch.enable_grad():
        return max(1, kept(2) - kept(1))


def free_bytes(device: torch.device) -> int:
    """Memory that is free, as the device or the system says; in a container, what it may have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable")]
    with suppress(OSError, ValueError):
        limit, used = (
            int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current")
        )
        found.append(limit - used)
    if not found and hasattr(os, "sysconf"):
        with suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return max(0, min(found, default=2**31))


def fitting_batch(pipe: "Pipeline") -> int:
    """The largest sensible batch, 1 or more."""
    most = MOST.get(pipe.device.type, MOST["cpu"])
    if pipe.prior is None:
        return most
    return max(1, min(most, free_bytes(pipe.device) // 2 // (2 * bytes_per_image(pipe))))
