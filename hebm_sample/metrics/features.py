"""Feature spaces for Fréchet distances that need no download.

`FeatureNet` is a small convolutional classifier of all label columns at once; its features are the
averages of its last maps. `classifiers.py` trains it on the same data as the generator.
`PcaFeatures` needs neither labels nor training: the leading principal components of downsampled
pixels. Distances in the two spaces differ in unit and meaning, and neither is FID: say `name`
beside a figure.

Images are uint8 or float in [-1, 1], (B, 3, H, W), of any size. Those larger than a
`FeatureNet`'s `input_size` are averaged down to it; compare features of images of one size only.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.io.bars import disabled
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.files import MAX_FILE_BYTES, read_capped, write_atomically
from hebm_sample.io.kept import open_tensors, tensor_bytes

__all__ = [
    "Extractor",
    "FeatureNet",
    "PcaFeatures",
    "averaged_down",
    "batches",
    "extract",
    "load_extractor",
    "save_extractor",
    "to_float",
]

FORMAT_VERSION = 1
INPUT_SIZE = 64


def to_float(images: np.ndarray | Tensor) -> Tensor:
    """uint8 or float images (B, 3, H, W) as float32 in [-1, 1]."""
    images = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserInputError(f"images have shape {tuple(images.shape)}; they must be (B, 3, H, W)")
    if images.dtype == torch.uint8:
        return images.float() / 127.5 - 1
    if not images.is_floating_point():
        raise UserInputError(
            f"images are of type {images.dtype}; they must be uint8, or float in [-1, 1]"
        )
    return images.float()


def averaged_down(images: Tensor, size: int) -> Tensor:
    """Float images (B, 3, H, W) whose larger side is at most `size` as they are; larger ones as
    averages over areas, (B, 3, size, size).
    """
    return images if max(images.shape[-2:]) <= size else F.adaptive_avg_pool2d(images, size)


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


class FeatureNet(nn.Module):
    """Convolutional classifier of several label columns; each stage halves the resolution.

    Arguments:
        columns: Column name to its number of values, in the order of the logits.
        widths: Channels of the stages, of which all but the first have a residual convolution; the
            last is D.
        input_size: Side to which larger images are averaged down first: what it costs, and what
            its features can see, does not grow with the images.
    """

    kind = "classifier"

    def __init__(
        self,
        columns: Mapping[str, int],
        widths: Sequence[int] = (48, 96, 128, 128),
        input_size: int = INPUT_SIZE,
    ) -> None:
        super().__init__()
        if input_size < 1:
            raise UserInputError(f"input_size is {input_size}; it must be at least 1")
        self.columns, self.widths, self.input_size = dict(columns), tuple(widths), input_size
        inputs = (3, *self.widths[:-1])
        self.down = nn.ModuleList(
            _convolution(i, o, 2) for i, o in zip(inputs, self.widths, strict=True)
        )
        self.residual = nn.ModuleList(_convolution(w, w, 1) for w in self.widths[1:])
        self.head = nn.Linear(self.widths[-1], sum(self.columns.values()))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def name(self) -> str:
        """What to print beside a figure."""
        labels = (
            ", ".join(self.columns) if len(self.columns) <= 3 else f"{len(self.columns)} labels"
        )
        return f"{self.widths[-1]} features of a classifier of {labels}"

    def settings(self) -> dict[str, Any]:
        """Plain values from which `FeatureNet(**settings)` is rebuilt."""
        return {
            "columns": self.columns,
            "widths": list(self.widths),
            "input_size": self.input_size,
        }

    def features(self, images: Tensor) -> Tensor:
        """Averages of the last maps, (B, D), from float images (B, 3, H, W) in [-1, 1]."""
        images = averaged_down(images, self.input_size)
        h = self.down[0](images.contiguous(memory_format=torch.channels_last))
        for down, residual in zip(list(self.down)[1:], self.residual, strict=True):
            h = down(h)
            h = h + residual(h)
        return h.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of all columns side by side, (B, sum of the columns' values)."""
        return self.head(self.features(images))

    def split(self, logits: Tensor) -> dict[str, Tensor]:
        """Logits (B, K_v) by column."""
        return dict(
            zip(self.columns, logits.split(list(self.columns.values()), dim=1), strict=True)
        )


class PcaFeatures(nn.Module):
    """Leading principal components of the pixels, averaged down to (side, side); not whitened.

    Arguments:
        dim: D, number of components.
        side: Pixels per side after downsampling.
    """

    kind = "pca"
    mean: Tensor  # (P,), P = 3 side^2
    components: Tensor  # (D, P), orthonormal rows

    def __init__(self, dim: int = 100, side: int = 16) -> None:
        super().__init__()
        if not 1 <= dim < 3 * side**2:
            raise UserInputError(
                f"dim is {dim}; at side {side} it must lie in [1, {3 * side**2 - 1}]"
            )
        self.dim, self.side = dim, side
        self.register_buffer("mean", torch.zeros(3 * side**2, dtype=torch.float64))
        self.register_buffer("components", torch.zeros(dim, 3 * side**2, dtype=torch.float64))

    @property
    def name(self) -> str:
        """What to print beside a figure."""
        return f"{self.dim} principal components of the pixels at {self.side}x{self.side}"

    def settings(self) -> dict[str, Any]:
        """Plain values from which `PcaFeatures(**settings)` is rebuilt."""
        return {"dim": self.dim, "side": self.side}

    def _pixels(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, self.side).flatten(1).double()  # (B, P)

    def fit(self, images: np.ndarray | Tensor, *, batch_size: int = 256) -> "PcaFeatures":
        """Fit to images (N, 3, H, W) with N > D; returns self.

        Deterministic: nothing is random, and each component's largest entry is positive.
        """
        if len(images) <= self.dim:
            raise UserInputError(
                f"{len(images)} images cannot give {self.dim} components; lower dim or add images"
            )
        pixels = np.concatenate(
            [self._pixels(x.cpu()).numpy() for x in batches(images, batch_size)]
        )
        mean = pixels.mean(axis=0)
        pixels -= mean
        _, vectors = np.linalg.eigh(pixels.T @ pixels)  # ascending eigenvalues
        components = vectors[:, ::-1][:, : self.dim].T
        largest = components[np.arange(self.dim), np.abs(components).argmax(axis=1)]
        self.mean.copy_(torch.from_numpy(mean))
        self.components.copy_(torch.from_numpy(components * np.sign(largest)[:, None]))
        return self

    def features(self, images: Tensor) -> Tensor:
        """Coordinates (B, D), float64, from float images (B, 3, H, W) in [-1, 1]."""
        if not self.components.any():
            raise UserInputError("the principal components are not fitted; call fit(images) first")
        return (self._pixels(images) - self.mean) @ self.components.T


Extractor: TypeAlias = FeatureNet | PcaFeatures


def batches(images: np.ndarray | Tensor | Iterable[Any], batch_size: int) -> Iterator[Tensor]:
    """Float batches (B, 3, H, W), B <= batch_size, of one array or an iterable of arrays."""
    arrays = [images] if hasattr(images, "shape") else cast("Iterable[Any]", images)
    for batch in cast("list[Any]", arrays):
        for start in range(0, len(batch), batch_size):
            part = batch[start : start + batch_size]
            yield to_float(part.copy() if isinstance(part, np.ndarray) else part)


@usual_defaults()
def extract(
    extractor: Extractor,
    images: np.ndarray | Tensor | Iterable[np.ndarray | Tensor],
    batch_size: int = 64,
    *,
    progress: bool = False,
) -> np.ndarray:
    """Features (N, D), float64, of images (N, 3, H, W) or of an iterable of batches of them.

    The extractor is used in evaluation mode, on its own device, and left as it was. Images are
    uint8 or float in [-1, 1]; to measure what a user would save, round float images to uint8
    first.

    Raises:
        UserInputError: There are no images, or they have another shape or type.
    """
    device = next(iter(extractor.state_dict().values())).device
    was_training = extractor.training
    extractor.eval()
    found = []
    try:
        with torch.no_grad(), tqdm(desc="features", unit="img", disable=disabled(progress)) as bar:
            for batch in batches(images, batch_size):
                found.append(extractor.features(batch.to(device)).double().cpu().numpy())
                bar.update(len(batch))
    finally:
        extractor.train(was_training)
    if not found:
        raise UserInputError("there are no images to take features of")
    return np.concatenate(found)


def save_extractor(
    extractor: Extractor, path: str | Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write weights and JSON metadata (such as the training report) to one safetensors file.

    All or nothing, with a hash of the content. Raises `EnvironmentFailure` if it cannot be
    written.
    """
    header = {
        "format_version": str(FORMAT_VERSION),
        "kind": extractor.kind,
        "settings": json.dumps(extractor.settings()),
        "metadata": json.dumps(dict(metadata or {}), sort_keys=True),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in extractor.state_dict().items()}
    write_atomically(Path(path), tensor_bytes(tensors, header))


@usual_defaults()
def load_extractor(
    path: str | Path, *, device: str | torch.device = "cpu", hashed: bool = False
) -> tuple[Extractor, dict[str, Any]]:
    """What `save_extractor` wrote: the extractor in evaluation mode, and its metadata.

    Arguments:
        hashed: Refuse a file of an earlier release, without a hash of its content.

    Raises:
        UserInputError: There is no such file.
        WeightsError: The file is corrupt, of another kind, or its tensors do not fit its settings.
    """
    path = Path(path)
    if not path.is_file():
        raise UserInputError(f"there is no feature file {path}; train one first")
    try:
        tensors, header = open_tensors(read_capped(path, MAX_FILE_BYTES), hashed=hashed)
        if header["format_version"] != str(FORMAT_VERSION):
            raise ValueError(
                f"format_version {header['format_version']}, this release reads {FORMAT_VERSION}"
            )
        kinds: dict[str, type[FeatureNet] | type[PcaFeatures]] = {
            k.kind: k for k in (FeatureNet, PcaFeatures)
        }
        extractor = kinds[header["kind"]](**json.loads(header["settings"]))
        extractor.load_state_dict(tensors)
        metadata = json.loads(header["metadata"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{path} is not a usable feature file ({error}); train it again"
        ) from error
    return extractor.to(device).eval(), metadata
