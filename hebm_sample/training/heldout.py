"""Figures on held-out images, with the same noise whenever they are measured."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hebm_sample.data.dataset import ImageDataset

__all__ = ["heldout_figures"]

BATCH = 50


@torch.no_grad()
def heldout_figures(
    objective: Callable[..., tuple[Tensor, dict[str, Any]]],
    images: ImageDataset,
    count: int,
    device: torch.device,
    names: dict[str, str],
) -> dict[str, float]:
    """Means of an objective's loss and statistics.

    Arguments:
        objective: (images, fraction of the run, labels, stream) to (loss, statistics).
        count: Images to take, from the first on.
        names: Of the statistics, to what they are logged as.
    """
    sums = dict.fromkeys(["heldout_loss", *names.values()], 0.0)
    count = min(count, len(images))
    for start in range(0, count, BATCH):
        rows = torch.arange(start, min(start + BATCH, count))
        stream = torch.Generator(device).manual_seed(start)
        loss, stats = objective(images.batch(rows).to(device), 1.0, None, stream)
        sums["heldout_loss"] += float(loss) * len(rows) / count
        for name, logged in names.items():
            sums[logged] += float(stats[name]) * len(rows) / count
    return sums
