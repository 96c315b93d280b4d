"""Counts what a block of torch operations takes: FLOPs, and the most bytes alive at a time.

with Meter(objective) as meter:
    loss.backward()
meter.flops, meter.peak_bytes
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["Meter"]


class Meter(TorchDispatchMode):
    """FLOPs of convolutions and matrix products, by torch's own formulas, and bytes of the tensors
    that operations make. What a kernel needs inside itself is not seen.

    torch's `FlopCounterMode` follows modules too, which `autograd.grad` inside a forward pass does
    not allow.

    Arguments:
        known: Modules whose weights, buffers and gradients are there already, and not counted.

    Attributes:
        flops: Of all operations so far; a multiplication and an addition are two.
        peak_bytes: The most that was alive at a time.
    """

    def __init__(self, known: nn.Module) -> None:
        super().__init__()
        self.flops = self.peak_bytes = self._now = 0
        self._alive: set[int] = set()
        for p in (*known.parameters(), *known.buffers()):
            for x in (p, p.grad):
                if x is not None:
                    self._alive.add(x.untyped_storage()._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self._count(x.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self._now += size
        self.peak_bytes = max(self.peak_bytes, self._now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size
