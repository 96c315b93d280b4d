"""`torch.compile`, and one line where a machine cannot."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from hebm_sample.errors import EnvironmentFailure

__all__ = ["compiled"]

OPTIONS: dict[str, Any] = {
    # Without Python's lock, which two threads would wait for.
    "cpp_wrapper": True,
    # PyTorch 2.13 computes wrong gradients in bfloat16 where it changes memory layouts: those of
    # an encoder lost what the KL asks of them (`tests/training/test_compile.py`).
    "layout_optimization": False,
}


def compiled(function: Callable[..., Any], instead: str) -> Callable[..., Any]:
    """`function` by `torch.compile`, once for every shape that it meets.

    Arguments:
        instead: What to do where it cannot be compiled: "sample without it".

    Raises:
        EnvironmentFailure: When called: this machine cannot compile.
    """
    inner = torch.compile(function, dynamic=False, options=OPTIONS)

    @wraps(function)
    def outer(*args: Any) -> Any:
        try:
            return inner(*args)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise EnvironmentFailure(
                f"torch.compile does not work here ({reason}); {instead}"
            ) from error

    return outer
