r"""Similarity transforms: a face onto a crop, and the crop back into its photograph.

    T(p) = a p + b,   p = x + i y        a = s e^{i phi} turns by phi and scales by s

    a = sum_j w_j conj(p_j - p) (q_j - q) / sum_j w_j |p_j - p|^2,   b = q - a p

least squares between points p_j of the photograph and q_j of the crop, with weighted means p and q
(Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991,
in two dimensions, where a rotation is a complex number and never a reflection). Coordinates are
continuous: the centre of the first pixel is (0.5, 0.5).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hebm_sample.errors import UserInputError

__all__ = ["FEATHER", "Similarity", "cut", "feather_mask", "fit", "paste", "softened"]

FEATHER = 0.15  # of the crop's side, over which the edge fades
_EDGE = 0.08  # of the side, over which a mask that reaches over the crop fades
_BAND = 64  # R of a mask's band is the crop's side over this, as in `pipeline.inpainting.blend`
_LARGEST_SIDE = 2048  # of the square that is cut before it is reduced

Points = np.ndarray
"""(N, 2) floats: x and y in pixels."""


@dataclass(frozen=True)
class Similarity:
    """T(p) = a p + b of points x + i y.

    >>> turn = Similarity(1j, 2 + 0j)
    >>> turn(np.array([[3.0, 0.0]])).tolist(), turn.inverse()(turn(np.eye(2))).tolist()
    ([[2.0, 3.0]], [[1.0, 0.0], [0.0, 1.0]])
    """

    a: complex
    b: complex

    def __call__(self, points: Points) -> Points:
        """The points' images, (N, 2)."""
        moved = self.a * _complex(points) + self.b
        return np.stack([moved.real, moved.imag], axis=-1)

    @property
    def scale(self) -> float:
        """Pixels there for a pixel here."""
        return abs(self.a)

    @property
    def degrees(self) -> float:
        """By how much it turns, clockwise as images are seen."""
        return math.degrees(math.atan2(self.a.imag, self.a.real))

    def inverse(self) -> "Similarity":
        """The way back."""
        return Similarity(1 / self.a, -self.b / self.a)

    def after(self, first: "Similarity") -> "Similarity":
        """First the other, then this."""
        return Similarity(self.a * first.a, self.a * first.b + self.b)

    def coefficients(self) -> tuple[float, ...]:
        """What `Image.transform` takes to fetch each pixel p of its result from T(p)."""
        a, b = self.a, self.b
        return (a.real, -a.imag, b.real, a.imag, a.real, b.imag)


def _complex(points: Points) -> np.ndarray:
    xy = np.asarray(points, dtype=np.float64)
    return xy[..., 0] + 1j * xy[..., 1]


def fit(source: Points, target: Points, weights: Sequence[float] | None = None) -> Similarity:
    """The similarity that leads points (N, 2) nearest to others, by least squares.

    Raises:
        UserInputError: All points are the same.
    """
    p, q = _complex(source), _complex(target)
    w = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64)
    mean_p, mean_q = (w * p).sum() / w.sum(), (w * q).sum() / w.sum()
    spread = (w * np.abs(p - mean_p) ** 2).sum()
    if not spread > 0:
        raise UserInputError("a face's eyes and mouth lie at one point; it cannot be aligned")
    a = complex((w * np.conj(p - mean_p) * (q - mean_q)).sum() / spread)
    if a == 0:
        raise UserInputError("a face's eyes and mouth do not say how it is turned")
    return Similarity(a, complex(mean_q - a * mean_p))


def _to_pixels(side: float) -> Similarity:
    """From the crop's unit square to its pixels."""
    return Similarity(complex(side), 0j)


def _bounds(corners: Points) -> tuple[int, int, int, int]:
    """The smallest box of whole pixels around points: left, top, right, bottom."""
    low, high = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


_UNIT = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def cut(photo: Image.Image, to_crop: Similarity, side: int) -> Image.Image:
    """The crop, `side` x `side`, of an RGB photograph.

    Bicubic, and reduced by Lanczos where the photograph has more pixels. What lies outside the
    photograph is its mirror image, as at the borders of FFHQ's crops.

    Arguments:
        to_crop: From the photograph's pixels to the crop's unit square.
    """
    factor = math.ceil(1 / (to_crop.scale * side) - 1e-6)
    wide = side * max(1, min(factor, _LARGEST_SIDE // side))
    box = _bounds(to_crop.inverse()(_UNIT))
    region, (left, top) = _region(photo, box)
    fetch = to_crop.inverse().after(_to_pixels(wide).inverse())
    fetch = Similarity(fetch.a, fetch.b - complex(left, top))
    found = region.transform(
        (wide, wide), Image.Transform.AFFINE, fetch.coefficients(), Image.Resampling.BICUBIC
    )
    if wide == side:
        return found
    return found.resize((side, side), Image.Resampling.LANCZOS)


def _region(
    photo: Image.Image, box: tuple[int, int, int, int], margin: int = 4
) -> tuple[Image.Image, tuple[int, int]]:
    """The box of an image with a margin, mirrored where it leaves the image; and its corner."""
    left, top, right, bottom = box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin
    columns = _mirrored(left, right, photo.width)
    rows = _mirrored(top, bottom, photo.height)
    x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    inside = np.asarray(photo.crop((int(x0), int(y0), int(x1), int(y1))))
    return Image.fromarray(inside[rows - y0][:, columns - x0]), (left, top)


def _mirrored(start: int, stop: int, size: int) -> np.ndarray:
    """Indices start ... stop - 1 folded into 0 ... size - 1.

    >>> _mirrored(-2, 5, 3).tolist()
    [1, 0, 0, 1, 2, 2, 1]
    """
    at = np.arange(start, stop) % (2 * size)
    return np.minimum(at, 2 * size - 1 - at)


def feather_mask(side: int, feather: float = FEATHER) -> Image.Image:
    """How much of each pixel is the crop's, of 255: all inside, none at the border, and a smooth
    step between over a `feather` of the side. Corners are round.
    """
    at = np.abs(np.linspace(-1.0, 1.0, side))  # 0 in the middle, 1 at the outermost pixels
    inner = 1 - 2 * feather
    beyond = np.clip((at - inner) / max(1e-9, 1 - inner), 0.0, None)
    distance = np.clip(np.hypot(beyond[:, None], beyond[None, :]), 0.0, 1.0)
    kept = 1 - distance * distance * (3 - 2 * distance)
    return Image.fromarray(np.rint(kept * 255).astype(np.uint8))


def paste(
    photo: Image.Image,
    crop: Image.Image,
    to_crop: Similarity,
    feather: float = FEATHER,
    mask: Image.Image | None = None,
) -> Image.Image:
    """The photograph with a crop where it came from, its edge feathered; what lies outside it
    stays as it is, to the bit, and so does the photograph's alpha.

    Arguments:
        photo: RGB or RGBA.
        crop: Square, of any size.
        to_crop: As of `cut`.
        mask: Grey, of the photograph's size, or else square over the crop. Where it is white the
            crop is put as far as the crop reaches, around that over a band that fades, and nowhere
            else.
    """
    side = crop.width
    here = max(1, round(1 / to_crop.scale))
    if here < side:  # the photograph has fewer pixels: reduce before fetching
        crop, side = crop.resize((here, here), Image.Resampling.LANCZOS), here
    box = _clipped(_bounds(to_crop.inverse()(_UNIT)), photo.size)
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return photo.copy()
    size = (right - left, bottom - top)
    here_to_crop = to_crop.after(Similarity(1 + 0j, complex(left, top)))
    moved = _fetched(_extended(crop), _to_pixels(side).after(here_to_crop), size)
    if mask is None:
        soft = _extended(feather_mask(side, feather), 0)
        weight = _fetched(soft, _to_pixels(side).after(here_to_crop), size)
    else:
        white = _mask_here(mask, photo.size, box, here_to_crop)
        weight = _within(white, _depth(here_to_crop, size), here_to_crop.scale)
    done = photo.convert("RGB")
    done.paste(Image.composite(moved, done.crop(box), weight), (left, top))
    if photo.mode == "RGBA":
        done.putalpha(photo.getchannel("A"))
    return done


def _mask_here(
    mask: Image.Image,
    photo: tuple[int, int],
    box: tuple[int, int, int, int],
    here_to_crop: Similarity,
) -> np.ndarray:
    """Where a mask, of the photograph or the crop, is white in a box of the photograph: bool."""
    if mask.size == photo:
        return np.asarray(mask.crop(box)) >= 128
    fetch = _to_pixels(mask.width).after(here_to_crop)
    size = (box[2] - box[0], box[3] - box[1])
    return np.asarray(_fetched(_extended(mask, 0), fetch, size)) >= 128


def _depth(here_to_crop: Similarity, size: tuple[int, int]) -> np.ndarray:
    """How far each pixel's middle lies inside the crop, of its side, (H, W); outside below 0."""
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    at = here_to_crop.a * (x[None] + 1j * y[:, None]) + here_to_crop.b
    return 0.5 - np.maximum(np.abs(at.real - 0.5), np.abs(at.imag - 0.5))


def _within(white: np.ndarray, depth: np.ndarray, pixel: float) -> Image.Image:
    """The weight, of 255, of what a mask covers of a crop, and of its band. Where a mask reaches
    over the crop's border, it fades towards that.

    Arguments:
        white: Where the mask is, (H, W) bool.
        depth: As of `_depth`.
        pixel: Side of a pixel, of the crop's.
    """
    inside = np.clip(depth / pixel + 0.5, 0.0, 1.0)
    soft = softened(white & (inside >= 0.5), round(1 / (_BAND * pixel)))
    over = white & (depth < pixel)
    if over.any():
        near = np.clip(depth / _EDGE, 0.0, 1.0)
        faded = 1 - near * near * (3 - 2 * near)
        inside = inside * (1 - faded * softened(over, round(_EDGE / pixel)))
    return Image.fromarray(np.rint(255 * inside * soft).astype(np.uint8))


def softened(white: np.ndarray, reach: int) -> np.ndarray:
    """1 where a mask (H, W) is true, falling to 0 over 2 `reach` pixels around: floats.

    >>> softened(np.array([[True] * 3 + [False] * 4]), 1).round(2).tolist()
    [[1.0, 1.0, 1.0, 0.67, 0.33, 0.0, 0.0]]
    """
    if reach == 0:
        return white.astype(np.float64)
    grown = _box_sums(white.astype(np.int64), reach) > 0
    area = (2 * reach + 1) ** 2
    return np.where(white, 1.0, _box_sums(grown.astype(np.int64), reach) / area)


def _box_sums(values: np.ndarray, reach: int) -> np.ndarray:
    """Sums over the square of 2 `reach` + 1 around each pixel, whose border goes on for ever."""
    for axis in (0, 1):
        width = [(0, 0), (0, 0)]
        width[axis] = (reach + 1, reach)
        sums = np.cumsum(np.pad(values, width, mode="edge"), axis=axis)
        # The first of the padding is what the sums begin after.
        ends = np.take(sums, np.arange(2 * reach + 1, sums.shape[axis]), axis=axis)
        values = ends - np.take(sums, np.arange(sums.shape[axis] - 2 * reach - 1), axis=axis)
    return values


_BORDER = 2


def _extended(image: Image.Image, fill: int | None = None) -> Image.Image:
    """With a border of two pixels, the image's own or of one value, so that what is fetched near
    the edge has neighbours.
    """
    pixels = np.asarray(image)
    width = [(_BORDER, _BORDER)] * 2 + [(0, 0)] * (pixels.ndim - 2)
    if fill is None:
        return Image.fromarray(np.pad(pixels, width, mode="edge"))
    return Image.fromarray(np.pad(pixels, width, constant_values=fill))


def _fetched(image: Image.Image, fetch: Similarity, size: tuple[int, int]) -> Image.Image:
    """Pixels p of an image that had a border added, from T(p)."""
    moved = Similarity(fetch.a, fetch.b + complex(_BORDER, _BORDER))
    kind = Image.Resampling.BILINEAR if image.mode == "L" else Image.Resampling.BICUBIC
    return image.transform(size, Image.Transform.AFFINE, moved.coefficients(), kind)


def _clipped(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    return max(0, box[0]), max(0, box[1]), min(size[0], box[2]), min(size[1], box[3])
