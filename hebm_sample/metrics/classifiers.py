"""Training of classifiers on whatever labels the data have: `fit_classifier` is the one loop.

All columns at once, with the cross-entropy of the known values only: the mean over images n and
columns v with known y_nv and K_v values, under label smoothing s, of

    -sum_j ((1 - s) [j = y_nv] + s / K_v) log softmax(logits_nv)_j

Two logits for a binary attribute make it the binary cross-entropy of their difference; -1 means
unknown. The optimiser is AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization",
arXiv 1711.05101) under a one-cycle schedule (Smith and Topin, "Super-Convergence", arXiv
1708.07120).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from hebm_sample.errors import TrainingDivergedError, UserInputError
from hebm_sample.io.bars import disabled
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.metrics.features import FeatureNet, averaged_down, batches, to_float

__all__ = [
    "UNKNOWN",
    "ClassifierRecipe",
    "column_accuracy",
    "fit_classifier",
    "label_matrix",
    "masked_cross_entropy",
    "train_feature_net",
]

UNKNOWN = -1
FEWEST_LABELLED = 20
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


@dataclass(frozen=True)
class ClassifierRecipe:
    """How a classifier is trained.

    Arguments:
        steps, batch_size: Optimiser steps, and images in each.
        learning_rate: Peak of the one-cycle schedule.
        warm_up: Share of the steps until the peak.
        betas, weight_decay: Of AdamW.
        smoothing: Of the labels.
        augment: Mirror, shift and vary contrast and brightness at random.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warm_up: float = 0.15
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.02
    smoothing: float = 0.0
    augment: bool = True

    def __post_init__(self) -> None:
        if self.steps < 2 or self.batch_size < 2:
            raise UserInputError(
                f"steps is {self.steps} and batch_size {self.batch_size}; each must be at least 2"
            )

    def optimiser(self, net: nn.Module) -> tuple[torch.optim.AdamW, Any]:
        """AdamW on the net's parameters, and its schedule."""
        optimiser = torch.optim.AdamW(
            net.parameters(), self.learning_rate, self.betas, weight_decay=self.weight_decay
        )
        # The library divides by the warm-up's length less one step.
        share = self.warm_up + (1e-9 if self.warm_up * self.steps == 1 else 0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            self.learning_rate,
            total_steps=self.steps,
            pct_start=share,
            cycle_momentum=False,
        )
        return optimiser, schedule


@usual_defaults()
def fit_classifier(
    net: Any,
    images: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    recipe: ClassifierRecipe,
    rng: np.random.Generator,
    *,
    title: str,
    prepare: Callable[[np.ndarray], np.ndarray] = lambda batch: batch,
    progress: bool = False,
) -> None:
    """Train `net`, in place, on these rows; it ends in evaluation mode.

    Arguments:
        net: Maps float images (B, 3, H, W) to logits that its `split` cuts into columns.
        images: uint8 (N, 3, H, W).
        labels: (N, V), -1 where unknown.
        rows: (M,), of those that are trained on.
        rng: Of the rows' order and the augmentation.
        title: What it is, for the bar and for errors.
        prepare: Bytes to bytes, before the augmentation.

    Raises:
        TrainingDivergedError: The loss left the finite numbers.
    """
    device = next(net.parameters()).device
    optimiser, schedule = recipe.optimiser(net)
    stream = row_stream(rows, recipe.batch_size, rng)
    net.train()
    bar = tqdm(range(1, recipe.steps + 1), desc=title, unit="step", disable=disabled(progress))
    for step in bar:
        batch = next(stream)
        shown = prepare(images[batch])
        pixels = augmented(shown, rng) if recipe.augment else to_float(shown)
        target = torch.from_numpy(labels[batch]).to(device)
        logits = net.split(net(pixels.to(device)))
        loss = masked_cross_entropy(logits.values(), target, recipe.smoothing)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % CHECK_EVERY == 0 or step == recipe.steps:
            if not torch.isfinite(loss):
                raise TrainingDivergedError(
                    f"the {title}'s loss is {loss.item()} at step {step}; lower learning_rate"
                )
            bar.set_postfix(loss=f"{loss.item():.3f}")
    net.eval()


def column_accuracy(predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any] | None:
    """How often predicted values (N,) are the labels (N,), over those known; None if none is.

    Returns:
        accuracy; balanced_accuracy (mean recall of the values that occur); majority, the
        commonest value's share; count of known labels; recalls, one a value up to the largest,
        None where it does not occur.
    """
    known = labels != UNKNOWN
    truth, right = labels[known], (predicted == labels)[known]
    if not len(truth):
        return None
    recalls = [
        float(right[truth == value].mean()) if (truth == value).any() else None
        for value in range(int(truth.max()) + 1)
    ]
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(np.mean([r for r in recalls if r is not None])),
        "majority": float(np.bincount(truth).max() / len(truth)),
        "count": len(truth),
        "recalls": recalls,
    }


# The feature network


def _accuracy(
    net: FeatureNet, images: np.ndarray, labels: np.ndarray
) -> dict[str, dict[str, float]]:
    """`column_accuracy` of the net by column, without the recalls."""
    device = net.head.weight.device
    with torch.no_grad():
        logits = torch.cat([net(x.to(device)).cpu() for x in batches(images, 64)])
    report = {}
    for v, (name, column) in enumerate(net.split(logits).items()):
        found = column_accuracy(column.argmax(dim=1).numpy(), labels[:, v])
        if found is not None:
            report[name] = {k: x for k, x in found.items() if k != "recalls"}
    return report


def _at_input_size(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 images as large as the network takes them: shifting and mirroring cost less then."""
    if max(images.shape[2:]) <= size:
        return images
    small = averaged_down(torch.from_numpy(images).float(), size)
    return small.round_().to(torch.uint8).numpy()


def _parted(
    matrix: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Labelled rows that only the report sees, and those that are trained on; both in order."""
    labelled = np.flatnonzero((matrix != UNKNOWN).any(axis=1))
    if len(labelled) < FEWEST_LABELLED:
        raise UserInputError(f"only {len(labelled)} images have labels; use PcaFeatures instead")
    shuffled = rng.permutation(labelled)
    count = min(max(1, round(share * len(labelled))), 1000)
    return np.sort(shuffled[:count]), np.sort(shuffled[count:])


@usual_defaults()
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
        batch_size: Images per step.
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
    recipe = ClassifierRecipe(steps, batch_size, learning_rate, augment=augment)
    if not 0 < holdout <= 0.5:
        raise UserInputError(f"holdout is {holdout}; it must lie in (0, 0.5]")
    columns, matrix = label_matrix(labels, len(images))
    rng = np.random.default_rng(seed)
    held, rows = _parted(matrix, holdout, rng)
    with torch.random.fork_rng(devices=[]):  # leaves the caller's stream alone
        torch.manual_seed(seed)
        net = FeatureNet(columns).to(device)
    fit_classifier(
        net,
        images,
        matrix,
        rows,
        recipe,
        rng,
        title="feature net",
        prepare=lambda batch: _at_input_size(batch, net.input_size),
        progress=progress,
    )
    return net, _report(net, images, matrix, held, recipe, seed)


def _report(
    net: FeatureNet,
    images: np.ndarray,
    matrix: np.ndarray,
    held: np.ndarray,
    recipe: ClassifierRecipe,
    seed: int,
) -> dict[str, Any]:
    """Recipe, data, and accuracies on the held-out rows, as plain values."""
    labelled = np.flatnonzero((matrix != UNKNOWN).any(axis=1))
    columns = _accuracy(net, images[held], matrix[held])
    means = {
        name: float(np.mean([found[name] for found in columns.values()]))
        for name in ("accuracy", "balanced_accuracy")
    }
    return {
        "name": net.name,
        "recipe": {
            "steps": recipe.steps,
            "batch_size": recipe.batch_size,
            "learning_rate": recipe.learning_rate,
            "augment": recipe.augment,
            "seed": seed,
        },
        "data": {
            "images": len(images),
            "labelled": len(labelled),
            "held_out": len(held),
            "size": list(images.shape[2:]),
            "sha256": _digest(images, matrix, labelled),
        },
        "mean_accuracy": means["accuracy"],
        "mean_balanced_accuracy": means["balanced_accuracy"],
        "columns": columns,
    }


def _digest(images: np.ndarray, matrix: np.ndarray, rows: np.ndarray) -> str:
    """Of these rows' images, then of their labels; never all in memory at once."""
    digest = hashlib.sha256()
    for start in range(0, len(rows), 256):
        digest.update(np.ascontiguousarray(images[rows[start : start + 256]]).data)
    digest.update(np.ascontiguousarray(matrix[rows]).data)
    return digest.hexdigest()
