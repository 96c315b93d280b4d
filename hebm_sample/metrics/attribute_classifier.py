"""Attribute classifiers: what is in an image, independent of the model that made it.

A classifier is trained on pixels and labels of the training rows and on nothing of the model;
architecture, seed and recipe are its own too. Its loss is the smoothed cross-entropy of
`metrics/classifiers.py` with s = 0.1 (Szegedy et al., "Rethinking the Inception Architecture for
Computer Vision", arXiv 1512.00567, section 7). Its prediction for an image is the mean of the
softmax over the image and its mirror image.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.files import MAX_FILE_BYTES, read_capped
from hebm_sample.io.kept import open_tensors
from hebm_sample.metrics.classifiers import (
    UNKNOWN,
    ClassifierRecipe,
    column_accuracy,
    fit_classifier,
    label_matrix,
)
from hebm_sample.metrics.features import FORMAT_VERSION, batches, save_extractor

__all__ = [
    "AttributeClassifier",
    "Predictions",
    "accuracies",
    "load_attribute_classifier",
    "save_attribute_classifier",
    "train_attribute_classifier",
]

INNER_SIZE = 32  # larger images are folded into channels, so that all cost alike
SMOOTHING = 0.1
WEIGHT_DECAY = 0.05


class Predictions(NamedTuple):
    """Of N images: p(value) by column, (N, K_v), and features (N, D)."""

    probabilities: dict[str, np.ndarray]
    features: np.ndarray

    def values(self, column: str) -> np.ndarray:
        """The most probable values, (N,)."""
        return self.probabilities[column].argmax(axis=1)


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class AttributeClassifier(nn.Module):
    """A small residual network: a stem, then stages that begin with max-pooling.

    Nothing but the stem works at full resolution, which is where a processor spends its time.

    Arguments:
        columns: Column name to its number of values, in the order of the logits.
        size: Side of the images; a multiple of 16.
        widths: Channels of the stem and of each stage; the last is D.
    """

    kind = "judge"  # in files, and so for good

    def __init__(
        self,
        columns: Mapping[str, int],
        size: int = INNER_SIZE,
        widths: Sequence[int] = (32, 48, 96, 192),
    ) -> None:
        super().__init__()
        if size < 16 or size % 16:
            raise UserInputError(
                f"attribute classifiers take images of 16, 32, 48, ... pixels, not {size}"
            )
        self.columns, self.size, self.widths = dict(columns), size, tuple(widths)
        most = max(1, size // INNER_SIZE)
        self.fold = nn.PixelUnshuffle(next(k for k in range(most, 0, -1) if size % k == 0))
        self.stem = _convolution(3 * self.fold.downscale_factor**2, self.widths[0])
        pairs = list(zip(self.widths[:-1], self.widths[1:], strict=True))
        self.grow = nn.ModuleList(_convolution(i, o) for i, o in pairs)
        self.residual = nn.ModuleList(_convolution(o, o) for _, o in pairs)
        self.head = nn.Linear(self.widths[-1], sum(self.columns.values()))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def settings(self) -> dict[str, Any]:
        """Plain values from which `AttributeClassifier(**settings)` is rebuilt."""
        return {"columns": self.columns, "size": self.size, "widths": list(self.widths)}

    def features(self, images: Tensor) -> Tensor:
        """Maxima of the last maps, (B, D), from float images (B, 3, S, S) in [-1, 1]."""
        if images.shape[-2:] != (self.size, self.size):
            raise UserInputError(
                f"the attribute classifier takes images of {self.size}x{self.size}; "
                f"these have {images.shape[-2]}x{images.shape[-1]}"
            )
        h = self.stem(self.fold(images).contiguous(memory_format=torch.channels_last))
        for grow, residual in zip(self.grow, self.residual, strict=True):
            h = grow(F.max_pool2d(h, 2))
            h = h + residual(h)
        return h.amax(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of all columns side by side, (B, sum of the columns' values)."""
        return self.head(self.features(images))

    def split(self, logits: Tensor) -> dict[str, Tensor]:
        """Logits (B, K_v) by column."""
        parts = logits.split(list(self.columns.values()), dim=1)
        return dict(zip(self.columns, parts, strict=True))

    @torch.no_grad()
    def predict(self, images: np.ndarray | Tensor, batch_size: int = 250) -> Predictions:
        """Predictions for images, averaged with those for their mirror images.

        Arguments:
            images: (N, 3, S, S), uint8 or float in [-1, 1], N at least 1.
        """
        was_training, device = self.training, self.head.weight.device
        self.eval()
        features, found = [], []
        for x in batches(images, batch_size):
            both = [self.features(v.to(device)) for v in (x, x.flip(-1))]
            parts = [self.split(self.head(h)).values() for h in both]
            found.append([(a.softmax(1) + b.softmax(1)) / 2 for a, b in zip(*parts, strict=True)])
            features.append((both[0] + both[1]) / 2)
        self.train(was_training)
        if not found:
            raise UserInputError("there are no images to classify")
        columns = [torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True)]
        return Predictions(
            dict(zip(self.columns, columns, strict=True)), torch.cat(features).cpu().numpy()
        )


def accuracies(
    predictions: Predictions, labels: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """How often a classifier is right, by column with any known label.

    Returns:
        What `column_accuracy` gives; recalls are one a value, None where it does not occur.
    """
    report: dict[str, dict[str, Any]] = {}
    for name, p in predictions.probabilities.items():
        if name not in labels:  # of a classifier that knows more than the data say
            continue
        found = column_accuracy(predictions.values(name), labels[name])
        if found is not None:
            missing = p.shape[1] - len(found["recalls"])
            report[name] = found | {"recalls": found["recalls"] + [None] * missing}
    return report


@usual_defaults()
def train_attribute_classifier(
    images: np.ndarray,
    labels: Mapping[str, np.ndarray],
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 4e-3,
    seed: int = 7,
    progress: bool = True,
    device: str | torch.device = "cpu",
) -> tuple[AttributeClassifier, dict[str, Any]]:
    """Train a classifier of these label columns.

    Arguments:
        images: Training images, uint8 (N, 3, S, S).
        labels: Column name to values (N,), whole numbers from 0, -1 where unknown. Columns
            without any known value are left out.
        steps: Optimiser steps.
        batch_size: Images per step.
        learning_rate: Peak of the one-cycle schedule.
        seed: Of the initial weights, the order and the augmentation.
        progress: Show a bar.
        device: Where to train.

    Returns:
        The classifier in evaluation mode, and its recipe and counts as plain values.

    Raises:
        UserInputError: No usable label, fewer of them than a batch needs, or a malformed input.
        TrainingDivergedError: The loss left the finite numbers.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise UserInputError(
            f"images are {images.dtype} {images.shape}; they must be uint8 (N, 3, S, S)"
        )
    recipe = ClassifierRecipe(
        steps,
        batch_size,
        learning_rate,
        warm_up=0.2,
        betas=(0.9, 0.99),
        weight_decay=WEIGHT_DECAY,
        smoothing=SMOOTHING,
    )
    columns, matrix = label_matrix(labels, len(images))
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):  # leaves the caller's stream alone
        torch.manual_seed(seed)
        net = AttributeClassifier(columns, images.shape[-1]).to(device)
    labelled = np.flatnonzero((matrix != UNKNOWN).any(axis=1))
    title = "attribute classifier"
    fit_classifier(net, images, matrix, labelled, recipe, rng, title=title, progress=progress)
    shown = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    report = {
        "recipe": {**shown, "seed": seed, "settings": net.settings()},
        "images": len(images),
        "labelled": len(labelled),
    }
    return net, report


def save_attribute_classifier(
    classifier: AttributeClassifier, path: str | Path, report: Mapping[str, Any]
) -> None:
    """Write weights and report to one safetensors file, all or nothing.

    Raises `EnvironmentFailure` if it cannot be written.
    """
    save_extractor(classifier, path, report)  # pyright: ignore[reportArgumentType]


@usual_defaults()
def load_attribute_classifier(
    path: str | Path, *, device: str | torch.device = "cpu", hashed: bool = False
) -> tuple[AttributeClassifier, dict[str, Any]]:
    """What `save_attribute_classifier` wrote: the classifier in evaluation mode, and its report.

    Arguments:
        hashed: Refuse a file of an earlier release, without a hash of its content.

    Raises:
        UserInputError: There is no such file.
        WeightsError: The file is corrupt, of another kind, or its tensors do not fit its settings.
    """
    if not Path(path).is_file():
        raise UserInputError(
            f"there is no attribute classifier {path}; train one with hebm-train classifier"
        )
    try:
        data = read_capped(Path(path), MAX_FILE_BYTES)
        tensors, header = open_tensors(data, hashed=hashed)
        if (header["kind"], header["format_version"]) != (
            AttributeClassifier.kind,
            str(FORMAT_VERSION),
        ):
            raise ValueError(f"kind {header['kind']}, format {header['format_version']}")
        classifier = AttributeClassifier(**json.loads(header["settings"]))
        classifier.load_state_dict(tensors)
        report = json.loads(header["metadata"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"{path} is no usable attribute classifier ({reason}); train it again"
        ) from error
    return classifier.to(device).eval(), report
