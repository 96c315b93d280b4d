r"""Multi-task cascaded convolutional networks: faces with eyes, nose and mouth, on the CPU.

    P-Net   12 x 12 windows at every size of a pyramid, as a convolution    proposals
    R-Net   24 x 24 of each proposal                                        fewer, moved
    O-Net   48 x 48 of what is left                                         boxes, landmarks

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional
Networks" (arXiv 1604.02878). The weights are those of the package `mtcnn` (the extra `align`),
which has them among its files, so that nothing is downloaded. Its own networks need TensorFlow;
these are the same ones in torch.

A box moves by its regression r as box + r * side, and of boxes that overlap the likeliest is kept.
"""

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hebm_sample.align.faces import Face
from hebm_sample.errors import EnvironmentFailure
from hebm_sample.io.extras import import_extra

__all__ = ["Mtcnn"]

# The files are pickles, so only these very ones are opened.
_FILES = {
    "pnet.lz4": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet.lz4": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet.lz4": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
# Of the max pooling after each convolution: kernel size, and whether the border is padded.
_Pool = tuple[int, bool] | None
_POOLS: tuple[tuple[_Pool, ...], ...] = (
    ((2, True), None, None),
    ((3, True), (3, False), None),
    ((3, True), (3, False), (2, True), None),
)
_WINDOW, _STRIDE = 12, 2  # of P-Net
_PYRAMID = 0.709  # two windows of neighbouring sizes overlap by half
_LONGEST, _SHORTEST_LONG_SIDE = 960, 256  # pixels that are looked at
_SMALLEST_FACE = 24
_LEFT_EYE, _RIGHT_EYE, _MOUTH = 0, 1, (3, 4)  # of five landmarks; the third is the nose


@dataclass(frozen=True)
class _Thresholds:
    """Least probabilities and most overlaps of the three stages."""

    proposal: float = 0.6
    refined: float = 0.7
    output: float = 0.9
    overlap: float = 0.7
    overlap_within_size: float = 0.5


def _convolutions(x: Tensor, weights: Iterator[Tensor], pools: Sequence[_Pool]) -> Tensor:
    """Convolution, PReLU and max pooling, as often as there are `pools`."""
    for pool in pools:
        x = F.prelu(F.conv2d(x, next(weights), next(weights)), next(weights))
        if pool is not None:
            x = F.max_pool2d(x, pool[0], 2, ceil_mode=pool[1])
    return x


def _dense(x: Tensor, weights: Iterator[Tensor]) -> Tensor:
    return x @ next(weights) + next(weights)


@dataclass(frozen=True)
class _Network:
    """One of the three.

    Arguments:
        weights: Kernel (O, I, k, k), bias and slope of each convolution; then matrices (I, O) and
            biases.
        pools: As of `_convolutions`.
    """

    weights: tuple[Tensor, ...]
    pools: tuple[_Pool, ...]

    def everywhere(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """P-Net at each place of images (B, 3, H, W): regressions (B, 4, h, w) and probabilities
        (B, h, w).
        """
        weights = iter(self.weights)
        x = _convolutions(x, weights, self.pools)
        boxes = F.conv2d(x, next(weights), next(weights))
        return boxes, F.conv2d(x, next(weights), next(weights)).softmax(1)[:, 1]

    def of_patches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """R-Net or O-Net of patches (B, 3, k, k): regressions (B, 4), landmarks (B, 0 or 10), and
        probabilities (B,).
        """
        weights = iter(self.weights)
        x = _convolutions(x, weights, self.pools)
        x = x.permute(0, 3, 2, 1).flatten(1)
        x = F.prelu(_dense(x, weights), next(weights))
        outputs = []
        while (weight := next(weights, None)) is not None:
            outputs.append(x @ weight + next(weights))
        boxes, *landmarks, classes = outputs
        return boxes, landmarks[0] if landmarks else x[:, :0], classes.softmax(1)[:, 1]


class Mtcnn:
    """The cascade.

    Arguments:
        networks: Weights of P-Net, R-Net and O-Net in the layout of TensorFlow: kernels
            (k, k, I, O).
    """

    def __init__(self, networks: Sequence[Sequence[np.ndarray]]) -> None:
        self._networks = [
            _Network(tuple(map(_in_torch, weights)), pools)
            for weights, pools in zip(networks, _POOLS, strict=True)
        ]
        self._thresholds = _Thresholds()

    @classmethod
    def installed(cls) -> "Mtcnn":
        """With the weights of the installed package `mtcnn`.

        Raises:
            EnvironmentFailure: It is not installed, or its weights are others.
        """
        load = import_extra("joblib", "align").load
        import_extra("lz4", "align")
        return cls([load(path) for path in _weight_files()])

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB image, from left to right."""
        longest = max(image.size)
        scale = min(1.0, _LONGEST / longest) * max(1.0, _SHORTEST_LONG_SIDE / longest)
        size = _scaled(image, scale)
        seen = image.resize(size, Image.Resampling.BICUBIC) if scale != 1.0 else image
        factors = np.array([image.width / size[0], image.height / size[1]])
        faces = [face.moved(lambda p: p * factors) for face in self._faces(seen)]
        return sorted(faces, key=lambda face: face.box[0] + face.box[2])

    def _faces(self, image: Image.Image) -> list[Face]:
        boxes = _squares(self._proposals(image))
        boxes = _squares(self._refined(image, boxes))
        return self._outputs(image, boxes)

    def _proposals(self, image: Image.Image) -> np.ndarray:
        """Boxes (N, 4) from P-Net at every size."""
        found, limits = [], self._thresholds
        for scale in _scales(min(image.size)):
            size = _scaled(image, scale)
            small = image.resize(size, Image.Resampling.BILINEAR)
            moves, scores = (t[0].numpy() for t in self._networks[0].everywhere(_pixels([small])))
            rows, columns = np.nonzero(scores > limits.proposal)
            corners = np.stack([columns, rows], axis=1) * _STRIDE
            windows = np.concatenate([corners, corners + _WINDOW], axis=1) / scale
            parts = [windows, scores[rows, columns, None], moves[:, rows, columns].T]
            boxes = np.concatenate(parts, axis=1)
            found.append(boxes[_kept(boxes, boxes[:, 4], limits.overlap_within_size)])
        boxes = np.concatenate(found) if found else np.zeros((0, 9))
        boxes = boxes[_kept(boxes, boxes[:, 4], limits.overlap)]
        return _moved(boxes[:, :4], boxes[:, 5:])

    def _refined(self, image: Image.Image, boxes: np.ndarray) -> np.ndarray:
        """Those of boxes (N, 4) that R-Net takes for faces, moved."""
        if not len(boxes):
            return boxes
        moves, _, scores = self._networks[1].of_patches(_patches(image, boxes, 24))
        chosen = scores.numpy() > self._thresholds.refined
        boxes, scores, moves = boxes[chosen], scores.numpy()[chosen], moves.numpy()[chosen]
        kept = _kept(boxes, scores, self._thresholds.overlap)
        return _moved(boxes[kept], moves[kept])

    def _outputs(self, image: Image.Image, boxes: np.ndarray) -> list[Face]:
        """The faces among boxes (N, 4), by O-Net."""
        if not len(boxes):
            return []
        moves, marks, scores = self._networks[2].of_patches(_patches(image, boxes, 48))
        chosen = scores.numpy() > self._thresholds.output
        boxes, scores, moves = boxes[chosen], scores.numpy()[chosen], moves.numpy()[chosen]
        # (n, 2, 5) fractions of the box, as points in pixels (n, 5, 2)
        points = marks.numpy()[chosen].reshape(-1, 2, 5).transpose(0, 2, 1).astype(np.float64)
        points = boxes[:, None, :2] + points * (boxes[:, 2:] - boxes[:, :2])[:, None]
        boxes = _moved(boxes, moves)
        kept = _kept(boxes, scores, self._thresholds.overlap, of_smaller=True)
        return [_face(boxes[i], float(scores[i]), points[i]) for i in kept]


def _weight_files() -> list[Path]:
    """The package's files, found without importing it, since that asks for TensorFlow."""
    spec = importlib.util.find_spec("mtcnn")
    if spec is None or not spec.submodule_search_locations:
        import_extra("mtcnn", "align")  # says what is missing
        raise EnvironmentFailure("mtcnn is no package; install it again")
    folder = Path(next(iter(spec.submodule_search_locations))) / "assets" / "weights"
    for name, digest in _FILES.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise EnvironmentFailure(
                f"{path} is not the file of mtcnn 1.0.0; install that: pip install mtcnn==1.0.0"
            )
    return [folder / name for name in _FILES]


def _in_torch(weight: np.ndarray) -> Tensor:
    """A kernel (k, k, I, O) as (O, I, k, k), a slope (1, 1, C) as (C,); others as they are."""
    found = torch.from_numpy(np.ascontiguousarray(weight))
    if found.ndim == 4:
        return found.permute(3, 2, 0, 1).contiguous()
    return found.flatten() if found.ndim == 3 else found


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size as floats (B, 3, H, W), about [-1, 1]."""
    stack = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy((stack - 127.5) / 128).permute(0, 3, 1, 2)


def _scales(shorter: int) -> list[float]:
    """Of the pyramid: from the smallest face that is looked for to the whole image."""
    scale, found = _WINDOW / _SMALLEST_FACE, []
    while shorter * scale >= _WINDOW:
        found.append(scale)
        scale *= _PYRAMID
    return found


def _squares(boxes: np.ndarray) -> np.ndarray:
    """Squares around the same centres, of the longer side: (N, 4)."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0.0, keepdims=True) / 2
    return np.concatenate([middle - half, middle + half], axis=1)


def _moved(boxes: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) by regressions (N, 4), which are fractions of their sides."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes + moves * np.concatenate([sides, sides], axis=1)


def _patches(image: Image.Image, boxes: np.ndarray, side: int) -> Tensor:
    """Squares of an image at one size, (N, 3, side, side); grey outside the image."""
    low, high = np.floor(boxes[:, :2].min(axis=0)), np.ceil(boxes[:, 2:].max(axis=0))
    left, top = (int(min(0, v)) for v in low)
    right, bottom = (int(max(v, s)) for v, s in zip(high, image.size, strict=True))
    wide = Image.new("RGB", (right - left, bottom - top), (127, 127, 127))
    wide.paste(image, (-left, -top))
    shifted = boxes - np.array([left, top, left, top])
    patches = [wide.resize((side, side), Image.Resampling.BILINEAR, _box(box)) for box in shifted]
    return _pixels(patches)


def _kept(
    boxes: np.ndarray, scores: np.ndarray, most: float, of_smaller: bool = False
) -> np.ndarray:
    """Indices of the likeliest boxes (N, 4 or more) of which no two overlap by more than `most` of
    their union, or of the smaller one.
    """
    left, top, right, bottom = boxes[:, :4].T
    areas = (right - left) * (bottom - top)
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        i, rest = order[0], order[1:]
        kept.append(i)
        width = np.minimum(right[i], right[rest]) - np.maximum(left[i], left[rest])
        height = np.minimum(bottom[i], bottom[rest]) - np.maximum(top[i], top[rest])
        both = np.maximum(width, 0) * np.maximum(height, 0)
        whole = np.minimum(areas[i], areas[rest]) if of_smaller else areas[i] + areas[rest] - both
        order = rest[both <= most * whole]
    return np.array(kept, dtype=np.int64)


def _face(box: np.ndarray, score: float, points: np.ndarray) -> Face:
    mouth = points[list(_MOUTH)].mean(axis=0)
    left, right, middle = (
        (float(x), float(y)) for x, y in (points[_LEFT_EYE], points[_RIGHT_EYE], mouth)
    )
    return Face(_box(box), score, left, right, middle)


def _scaled(image: Image.Image, scale: float) -> tuple[int, int]:
    """An image's width and height at a scale, in whole pixels."""
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _box(box: np.ndarray) -> tuple[float, float, float, float]:
    left, top, right, bottom = map(float, box)
    return left, top, right, bottom
