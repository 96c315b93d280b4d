"""Figures on held-out images, with the same noise whenever they are measured."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hebm_sample.data.dataset import ImageDataset
from hebm_sample.training.optim import Rows, Stream

__all__ = ["heldout_figures"]

BATCH = 50


@torch.no_grad()
def heldout_figures(
    objective: Callable[..., tuple[Tensor, dict[str, Any]]],
    images: ImageDataset,
    count: int,
    device: torch.device,
    names: dict[str, str],
    at_once: int = BATCH,
) -> dict[str, float]:
    """Means of an objective's loss and statistics.

    Arguments:
        objective: (images, fraction of the run, labels, stream) to (loss, statistics).
        count: Images to take (`ImageDataset.some`).
        names: Of the statistics, to what they are logged as.
        at_once: Images at a time; the noise is the same, whatever it is.
    """
    sums = dict.fromkeys(["heldout_loss", *names.values()], 0.0)
    count = min(count, len(images))
    images = images.some(count)
    for rows, stream in _batches(count, at_once, device):
        loss, stats = objective(images.batch(rows).to(device), 1.0, None, stream)
        sums["heldout_loss"] += float(loss) * len(rows) / count
        for name, logged in names.items():
            sums[logged] += float(stats[name]) * len(rows) / count
    return sums


def _batches(count: int, at_once: int, device: torch.device) -> Iterator[tuple[Tensor, Stream]]:
    """Rows, and what is drawn from for them: of parts of a batch, their rows of its noise."""
    for start in range(0, count, BATCH):
        batch = torch.arange(start, min(start + BATCH, count))
        for first in range(0, len(batch), at_once):
            stream = torch.Generator(device).manual_seed(start)
            whole = at_once >= len(batch)
            rows = batch[first : first + at_once]
            yield rows, stream if whole else Rows(stream, first, len(batch))
