"""Judges: classifiers that say what is in an image, independent of the model that drew it.

A judge sees the pixels and labels of the training rows and nothing of the model; architecture,
seed and recipe are its own too. Its loss is the smoothed cross-entropy of the known labels y_v of
each column v with K_v values, s = 0.1,

    -sum_j ((1 - s) [j = y_v] + s / K_v) log softmax(logits_v)_j

averaged over all known ones; -1 means unknown. What it says of an image is the mean of the
softmax over the image and its mirror image.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm.auto import tqdm

from hebm_sample.errors import TrainingDivergedError, UserInputError, WeightsError
from hebm_sample.metrics.classifiers import (
    UNKNOWN,
    augmented,
    label_matrix,
    masked_cross_entropy,
    row_stream,
)
from hebm_sample.metrics.features import FORMAT_VERSION, batches, save_extractor

__all__ = ["JudgeNet", "Verdict", "accuracies", "load_judge", "save_judge", "train_judge"]

INNER_SIZE = 32  # larger images are folded into channels, so that all cost alike
SMOOTHING = 0.1
WEIGHT_DECAY = 0.05
CHECK_EVERY = 20  # steps between looks at the loss, each of which waits for the device


class Verdict(NamedTuple):
    """What a judge says of N images: p(value) by column, (N, K_v), and features (N, D)."""

    probabilities: dict[str, np.ndarray]
    features: np.ndarray

    def values(self, column: str) -> np.ndarray:
        """The values it names, (N,)."""
        return self.probabilities[column].argmax(axis=1)


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class JudgeNet(nn.Module):
    """A small residual network: a stem, then stages that begin with max-pooling.

    Nothing but the stem works at full resolution, which is where a processor spends its time.

    Arguments:
        columns: Column name to its number of values, in the order of the logits.
        size: Side of the images; a multiple of 16.
        widths: Channels of the stem and of each stage; the last is D.
    """

    kind = "judge"

    def __init__(
        self,
        columns: Mapping[str, int],
        size: int = INNER_SIZE,
        widths: Sequence[int] = (32, 48, 96, 192),
    ) -> None:
        super().__init__()
        if size < 16 or size % 16:
            raise UserInputError(f"judges see images of 16, 32, 48, ... pixels, not {size}")
        self.columns, self.size, self.widths = dict(columns), size, tuple(widths)
        self.fold = nn.PixelUnshuffle(max(1, size // INNER_SIZE))
        self.stem = _convolution(3 * self.fold.downscale_factor**2, self.widths[0])
        pairs = list(zip(self.widths[:-1], self.widths[1:], strict=True))
        self.grow = nn.ModuleList(_convolution(i, o) for i, o in pairs)
        self.residual = nn.ModuleList(_convolution(o, o) for _, o in pairs)
        self.head = nn.Linear(self.widths[-1], sum(self.columns.values()))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def settings(self) -> dict[str, Any]:
        """Plain values from which `JudgeNet(**settings)` is rebuilt."""
        return {"columns": self.columns, "size": self.size, "widths": list(self.widths)}

    def features(self, images: Tensor) -> Tensor:
        """Maxima of the last maps, (B, D), from float images (B, 3, S, S) in [-1, 1]."""
        if images.shape[-2:] != (self.size, self.size):
            raise UserInputError(
                f"the judge sees images of {self.size}x{self.size}; "
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
    def judge(self, images: np.ndarray | Tensor, batch_size: int = 250) -> Verdict:
        """Look at images and their mirror images, with the statistics of training.

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
            raise UserInputError("there are no images to judge")
        columns = [torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True)]
        return Verdict(
            dict(zip(self.columns, columns, strict=True)), torch.cat(features).cpu().numpy()
        )


def accuracies(
    verdict: Verdict, labels: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float | int | list[float | None]]]:
    """How often a judge is right, by column with any known label.

    Returns:
        accuracy; balanced_accuracy (mean recall of the values that occur); majority, the
        commonest value's share; count of known labels; recalls, one a value, None where it does
        not occur.
    """
    report: dict[str, dict[str, float | int | list[float | None]]] = {}
    for name, p in verdict.probabilities.items():
        known = labels[name] != UNKNOWN
        truth, right = labels[name][known], (verdict.values(name) == labels[name])[known]
        if not len(truth):
            continue
        values = range(max(p.shape[1], int(truth.max()) + 1))
        recalls = [
            float(right[truth == value].mean()) if (truth == value).any() else None
            for value in values
        ]
        report[name] = {
            "accuracy": float(right.mean()),
            "balanced_accuracy": float(np.mean([r for r in recalls if r is not None])),
            "majority": float(np.bincount(truth).max() / len(truth)),
            "count": len(truth),
            "recalls": recalls,
        }
    return report


def _fit(
    net: JudgeNet,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    rng: np.random.Generator,
    progress: bool,
) -> None:
    device = net.head.weight.device
    optimiser = torch.optim.AdamW(
        net.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    stream = row_stream(np.flatnonzero((labels != UNKNOWN).any(axis=1)), batch_size, rng)
    net.train()
    bar = tqdm(range(1, steps + 1), desc="judge", unit="step", disable=not progress)
    for step in bar:
        rows = next(stream)
        pixels = augmented(images[rows], rng).to(device)
        target = torch.from_numpy(labels[rows]).to(device)
        loss = masked_cross_entropy(net.split(net(pixels)).values(), target, SMOOTHING)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % CHECK_EVERY == 0 or step == steps:
            if not torch.isfinite(loss):
                raise TrainingDivergedError(
                    f"the judge's loss is {loss.item()} at step {step}; lower learning_rate"
                )
            bar.set_postfix(loss=f"{loss.item():.3f}")
    net.eval()


def train_judge(
    images: np.ndarray,
    labels: Mapping[str, np.ndarray],
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 4e-3,
    seed: int = 7,
    progress: bool = True,
    device: str | torch.device = "cpu",
) -> tuple[JudgeNet, dict[str, Any]]:
    """Train a judge of these label columns.

    Arguments:
        images: Training images, uint8 (N, 3, S, S).
        labels: Column name to values (N,), whole numbers from 0, -1 where unknown. Columns
            without any known value are left out.
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Peak of the one-cycle schedule.
        seed: Of the initial weights, the order and the augmentation.
        progress: Show a bar.
        device: Where to train.

    Returns:
        The judge in evaluation mode, and its recipe and counts as plain values.

    Raises:
        UserInputError: No usable label, fewer of them than a batch needs, or a malformed input.
        TrainingDivergedError: The loss left the finite numbers.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise UserInputError(
            f"images are {images.dtype} {images.shape}; they must be uint8 (N, 3, S, S)"
        )
    if steps < 2 or batch_size < 2:
        raise UserInputError(
            f"steps is {steps} and batch_size {batch_size}; each must be at least 2"
        )
    columns, matrix = label_matrix(labels, len(images))
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):  # leaves the caller's stream alone
        torch.manual_seed(seed)
        net = JudgeNet(columns, images.shape[-1]).to(device)
    recipe = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    _fit(net, images, matrix, rng=rng, progress=progress, **recipe)
    report = {
        "recipe": {**recipe, "seed": seed, "settings": net.settings()},
        "images": len(images),
        "labelled": int((matrix != UNKNOWN).any(axis=1).sum()),
    }
    return net, report


def save_judge(judge: JudgeNet, path: str | Path, report: Mapping[str, Any]) -> None:
    """Write weights and report to one safetensors file, all or nothing.

    Raises `EnvironmentFailure` if it cannot be written.
    """
    save_extractor(judge, path, report)  # pyright: ignore[reportArgumentType]


def load_judge(
    path: str | Path, *, device: str | torch.device = "cpu"
) -> tuple[JudgeNet, dict[str, Any]]:
    """What `save_judge` wrote: the judge in evaluation mode, and its report.

    Raises:
        UserInputError: There is no such file.
        WeightsError: The file is corrupt, of another kind, or its tensors do not fit its settings.
    """
    if not Path(path).is_file():
        raise UserInputError(f"there is no judge {path}; train one with hebm-train judge")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if (header["kind"], header["format_version"]) != (JudgeNet.kind, str(FORMAT_VERSION)):
            raise ValueError(f"kind {header['kind']}, format {header['format_version']}")
        judge = JudgeNet(**json.loads(header["settings"]))
        judge.load_state_dict(tensors)
        report = json.loads(header["metadata"])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path} is no usable judge ({reason}); train it again") from error
    return judge.to(device).eval(), report
