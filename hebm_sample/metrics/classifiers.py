"""Training of the feature network: a classifier on whatever labels the data have.

All columns at once, with the cross-entropy of the known values only: the mean over images n and
columns v with known y_nv of

    -log softmax(logits_nv)[y_nv]

Two logits for a binary attribute make it the binary cross-entropy of their difference; -1 means
unknown.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from hebm_sample.errors import TrainingDivergedError, UserInputError
from hebm_sample.metrics.features import FeatureNet, averaged_down, batches, to_float

__all__ = ["masked_cross_entropy", "train_feature_net"]

UNKNOWN = -1
CHECK_EVERY = 20  # steps between looks at the loss, each of which waits for the device


def label_matrix(
    labels: Mapping[str, np.ndarray], count: int
) -> tuple[dict[str, int], np.ndarray]:
    """Columns with any known value (name to number of values) and their labels (N, V)."""
    columns, known = {}, []
    for name, column in labels.items():
        values = np.asarray(column)
        if values.shape != (count,) or values.dtype.kind not in "iub":
            raise UserInputError(
                f"label column {name!r} has shape {values.shape} and type {values.dtype}; "
                f"it must hold {count} whole numbers, {UNKNOWN} where unknown"
            )
        if values.size and values.min() < UNKNOWN:
            raise UserInputError(
                f"label column {name!r} holds {values.min()}; {UNKNOWN} means unknown"
            )
        if (values >= 0).any():
            columns[name] = max(int(values.max()) + 1, 2)
            known.append(values.astype(np.int64))
    if not columns:
        raise UserInputError(
            "no image has a label to train a feature network on; use PcaFeatures instead"
        )
    return columns, np.stack(known, axis=1)


def augmented(images: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Random mirror, shift, contrast and brightness of uint8 (B, 3, H, W), as floats.

    Shifts reach 1/16 of the side; the border is repeated where one uncovers nothing.
    """
    count, _, height, width = images.shape
    rows = np.arange(height) + rng.integers(-(height // 16), height // 16 + 1, (count, 1))
    columns = np.arange(width) + rng.integers(-(width // 16), width // 16 + 1, (count, 1))
    columns = np.where(rng.random((count, 1)) < 0.5, columns, columns[:, ::-1])
    rows, columns = rows.clip(0, height - 1)[:, :, None], columns.clip(0, width - 1)[:, None, :]
    moved = images[np.arange(count)[:, None, None], :, rows, columns]  # (B, H, W, 3)
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (count, 1, 1, 1))).float()
    offset = torch.from_numpy(rng.uniform(-0.1, 0.1, (count, 1, 1, 1))).float()
    return (to_float(moved.transpose(0, 3, 1, 2)) * gain + offset).clamp(-1, 1)


def masked_cross_entropy(
    columns: Iterable[Tensor], labels: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Scalar: cross-entropy averaged over the known ones of labels (B, V); 0 if none is known.

    Arguments:
        columns: V logits, (B, values) each.
        smoothing: Of the labels.
    """
    per_column = [
        F.cross_entropy(
            column,
            labels[:, v],
            ignore_index=UNKNOWN,
            label_smoothing=smoothing,
            reduction="sum",
        )
        for v, column in enumerate(columns)
    ]
    return torch.stack(per_column).sum() / (labels != UNKNOWN).sum().clamp(min=1)


def row_stream(
    rows: np.ndarray, batch_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Endless batches of rows, each epoch in a new order; a batch may span two epochs."""
    queue = rows[:0]
    while True:
        while len(queue) < batch_size:
            queue = np.concatenate([queue, rng.permutation(rows)])
        yield queue[:batch_size]
        queue = queue[batch_size:]


def _accuracy(
    net: FeatureNet, images: np.ndarray, labels: np.ndarray
) -> dict[str, dict[str, float]]:
    """Accuracy, balanced accuracy (mean recall) and the commonest value's share, by column."""
    device = net.head.weight.device
    with torch.no_grad():
        logits = torch.cat([net(x.to(device)).cpu() for x in batches(images, 64)])
    report = {}
    for v, (name, column) in enumerate(net.split(logits).items()):
        known = labels[:, v] != UNKNOWN
        if known.any():
            truth, hit = labels[known, v], (column.argmax(dim=1).numpy() == labels[:, v])[known]
            recalls = [hit[truth == value].mean() for value in np.unique(truth)]
            report[name] = {
                "accuracy": float(hit.mean()),
                "balanced_accuracy": float(np.mean(recalls)),
                "majority": float(np.bincount(truth).max() / len(truth)),
                "count": int(known.sum()),
            }
    return report


def _bytes_seen(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 images as the network sees them: shifting and mirroring cost less afterwards."""
    if max(images.shape[2:]) <= size:
        return images
    small = averaged_down(torch.from_numpy(images).float(), size)
    return small.round_().to(torch.uint8).numpy()


def _fit(
    net: FeatureNet,
    images: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    *,
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
    learning_rate: float,
    augment: bool,
    progress: bool,
) -> None:
    device = net.head.weight.device
    optimiser = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, total_steps=steps, pct_start=0.15, cycle_momentum=False
    )
    stream = row_stream(rows, batch_size, rng)
    net.train()
    bar = tqdm(range(1, steps + 1), desc="feature net", unit="step", disable=not progress)
    for step in bar:
        batch = next(stream)
        seen = _bytes_seen(images[batch], net.input_size)
        pixels = augmented(seen, rng) if augment else to_float(seen)
        target = torch.from_numpy(labels[batch]).to(device)
        loss = masked_cross_entropy(net.split(net(pixels.to(device))).values(), target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % CHECK_EVERY == 0 or step == steps:
            if not torch.isfinite(loss):
                raise TrainingDivergedError(
                    f"the feature network's loss is {loss.item()} at step {step}; "
                    "lower learning_rate"
                )
            bar.set_postfix(loss=f"{loss.item():.3f}")
    net.eval()


def train_feature_net(
    images: np.ndarray,
    labels: Mapping[str, np.ndarray],
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    device: str | torch.device = "cpu",
    learning_rate: float = 3e-3,
    augment: bool = True,
    holdout: float = 0.1,
) -> tuple[FeatureNet, dict[str, Any]]:
    """Train a `FeatureNet` on the rows that have a label, and measure it on rows held out of them.

    Arguments:
        images: Training images, uint8 (N, 3, H, W).
        labels: Column name to values (N,), whole numbers from 0, -1 where unknown. Columns
            without any known value are left out.
        steps: Optimiser steps.
        batch_size: Images a step.
        seed: Of the initial weights, the held-out rows, the order and the augmentation.
        progress: Show a bar.
        device: Where to train.
        learning_rate: Peak of the one-cycle schedule.
        augment: Mirror, shift and vary contrast and brightness at random.
        holdout: Share of the labelled rows, at most 1,000, that only the report sees.

    Returns:
        The network in evaluation mode, and a report of plain values: recipe, data (counts, size,
        sha256 of the labelled images and labels), held-out accuracies (mean and by column).

    Raises:
        UserInputError: No usable label, fewer than 20 labelled images, or a malformed input.
        TrainingDivergedError: The loss left the finite numbers.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise UserInputError(
            f"images are {images.dtype} {images.shape}; they must be uint8 (N, 3, H, W)"
        )
    if steps < 2 or batch_size < 2:
        raise UserInputError(
            f"steps is {steps} and batch_size {batch_size}; each must be at least 2"
        )
    if not 0 < holdout <= 0.5:
        raise UserInputError(f"holdout is {holdout}; it must lie in (0, 0.5]")
    columns, matrix = label_matrix(labels, len(images))
    labelled = np.flatnonzero((matrix != UNKNOWN).any(axis=1))
    if len(labelled) < 20:
        raise UserInputError(f"only {len(labelled)} images have labels; use PcaFeatures instead")
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(labelled)
    num_held = min(max(1, round(holdout * len(labelled))), 1000)
    held, rows = np.sort(shuffled[:num_held]), np.sort(shuffled[num_held:])
    with torch.random.fork_rng(devices=[]):  # leaves the caller's stream alone
        torch.manual_seed(seed)
        net = FeatureNet(columns).to(device)
    recipe = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "augment": augment,
    }
    _fit(net, images, matrix, rows, rng=rng, progress=progress, **recipe)
    accuracy = _accuracy(net, images[held], matrix[held])
    report = {
        "name": net.name,
        "recipe": {**recipe, "seed": seed},
        "data": {
            "images": len(images),
            "labelled": len(labelled),
            "held_out": len(held),
            "size": list(images.shape[2:]),
            "sha256": _digest(images, matrix, labelled),
        },
        "mean_accuracy": float(np.mean([a["accuracy"] for a in accuracy.values()])),
        "mean_balanced_accuracy": float(
            np.mean([a["balanced_accuracy"] for a in accuracy.values()])
        ),
        "columns": accuracy,
    }
    return net, report


def _digest(images: np.ndarray, matrix: np.ndarray, rows: np.ndarray) -> str:
    """Of these rows' images, then of their labels; never all in memory at once."""
    digest = hashlib.sha256()
    for start in range(0, len(rows), 256):
        digest.update(np.ascontiguousarray(images[rows[start : start + 256]]).data)
    digest.update(np.ascontiguousarray(matrix[rows]).data)
    return digest.hexdigest()
