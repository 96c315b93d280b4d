"""Latents: one tensor per group, and what every part of the package does with them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hebm_sample.errors import UserInputError

__all__ = [
    "Latents",
    "Scalar",
    "Shapes",
    "check_finite",
    "check_latents",
    "concatenate",
    "exact",
    "flatten",
    "per_example",
    "unflatten",
]

Latents = tuple[Tensor, ...]
"""One (B, C_i, H_i, W_i) tensor per group, top (coarse) to bottom (fine)."""

Shapes = tuple[tuple[int, int, int], ...]
"""(C_i, H_i, W_i) of each group."""

Scalar = float | Tensor
"""A number for the batch, or one per example, of shape (B,)."""


def check_latents(latents: Latents, shapes: Shapes) -> int:
    """The batch size of `latents`; raises `UserInputError` where a shape differs."""
    if not all(isinstance(x, Tensor) for x in latents):  # pyright: ignore[reportUnnecessaryIsInstance]
        kinds = ", ".join(dict.fromkeys(type(x).__name__ for x in latents))
        raise UserInputError(f"latents are one tensor per group; these are {kinds}")
    found = [tuple(x.shape[1:]) for x in latents]
    batches = {int(x.shape[0]) for x in latents if x.dim()}
    if found != list(shapes) or len(batches) != 1 or 0 in batches:
        raise UserInputError(
            f"latents have shapes {[tuple(x.shape) for x in latents]}; this model needs "
            f"(B, C, H, W) = {[('B', *s) for s in shapes]} with one B >= 1"
        )
    return batches.pop()


def check_finite(latents: Latents) -> None:
    """Raises `UserInputError` where one of the latents is no finite number."""
    if not all(bool(torch.isfinite(x).all()) for x in latents):
        raise UserInputError("latents must be finite numbers; some are infinite or none (nan)")


def exact(x: Tensor) -> Tensor:
    """In double precision, where the device has it: MPS has none."""
    return x if x.device.type == "mps" else x.double()


def flatten(u: Latents) -> Tensor:
    """All groups of each example in one row, (B, D)."""
    return torch.cat([g.flatten(1) for g in u], dim=1)


def unflatten(row: Tensor, like: Latents) -> Latents:
    """Rows (B, D) as groups shaped like `like`; undoes `flatten`."""
    parts = torch.split(row, [g[0].numel() for g in like], dim=1)
    return tuple(part.reshape(g.shape) for part, g in zip(parts, like, strict=True))


def concatenate(parts: Sequence[Latents]) -> Latents:
    """Latents of several batches as those of one."""
    return tuple(torch.cat(group) for group in zip(*parts, strict=True))


def per_example(value: Scalar, like: Tensor) -> Scalar:
    """`value` ready to multiply `like` (B, ...): a number as it is, (B,) as (B, 1, ...). What has
    as many dimensions as `like` stays.
    """
    if not isinstance(value, Tensor) or value.dim() == like.dim():
        return value
    return value.reshape(-1, *(1,) * (like.dim() - 1))
