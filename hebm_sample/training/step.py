"""One optimiser step with a NaN guard, an average of the weights, and draws that depend on the
step alone.

    theta <- AdamW(clip(grad)),    ema <- d ema + (1 - d) theta

A step's randomness is a function of (seed, step, rank): a resumed run draws what the uninterrupted
one would.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hebm_sample.errors import TrainingDivergedError
from hebm_sample.training.settings import TrainSettings

__all__ = ["NanGuard", "averaged", "learning_rate", "make_optimizer", "seed_step", "train_step"]


def learning_rate(settings: TrainSettings, step: int, total: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    peak = settings.learning_rate
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    done = min((step - settings.warmup_steps) / max(total - settings.warmup_steps, 1), 1.0)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.betas[0], settings.betas[1]),
        weight_decay=settings.weight_decay,
    )


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` whose parameters and buffers follow it by an exponential moving average.

    The decay is ramped up as min(decay, (1 + n) / (10 + n)) over the first updates, so that short
    runs do not export their initial weights.
    """
    ema = AveragedModel(model, use_buffers=True)

    def average(targets: list[Tensor], sources: list[Tensor], updates: Tensor) -> None:
        n = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(targets, sources, updates)

    ema.multi_avg_fn = average  # pyright: ignore[reportAttributeAccessIssue]
    ema.requires_grad_(False)
    return ema


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's global stream from (seed, step, rank) through splitmix64, so that neighbours
    differ in all bits.
    """
    x = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    torch.manual_seed((x ^ (x >> 31)) % 2**63)


class NanGuard:
    """Counts skipped steps; raises `TrainingDivergedError` when too many come in a row."""

    def __init__(self, limit: int, total: int = 0, in_a_row: int = 0) -> None:
        self.limit, self.total, self.in_a_row = limit, total, in_a_row

    def record(self, finite: bool, step: int) -> None:
        """Note whether this step's gradients were finite."""
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.total += not finite
        if self.in_a_row >= self.limit:
            raise TrainingDivergedError(
                f"{self.in_a_row} steps in a row had non-finite gradients (step {step}); the last "
                "good checkpoint is kept: resume with a lower learning rate or another seed"
            )


def train_step(
    objective: Callable[..., tuple[Tensor, dict[str, Any]]],
    batch: tuple[Tensor, Tensor | None],
    fraction: float,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    clip: float,
    backward: Callable[[Tensor], None],
) -> tuple[bool, dict[str, Any]]:
    """Forward, backward, clip, update unless a gradient is not finite.

    Arguments:
        objective: (pictures, fraction of the run done[, labels]) to (loss, statistics).
        batch: Pictures, and their labels where the objective asks for them.
        backward: Takes the loss; `accelerator.backward` where several processes share the work.

    Returns:
        Whether the update was made, and the objective's statistics with `loss` and
        `gradient_norm`.
    """
    optimizer.zero_grad(set_to_none=True)
    images, labels = batch
    inputs = (images, fraction) if labels is None else (images, fraction, labels)
    loss, stats = objective(*inputs)
    backward(loss)
    norm = nn.utils.clip_grad_norm_(parameters, clip)
    # The gradients are every process's mean, so all decide alike; a loss is a process's own.
    finite = bool(torch.isfinite(norm))
    if finite:
        optimizer.step()
    return finite, {"loss": loss.detach(), "gradient_norm": norm.detach(), **stats}
