"""Drawn faces: coloured discs for eyes and mouth, and a detector that finds exactly these."""

import numpy as np
from PIL import Image

from hebm_sample.align.faces import Face
from hebm_sample.align.geometry import Similarity
from hebm_sample.config import FaceCrop

CROP = FaceCrop((0.35, 0.4), (0.65, 0.4), (0.5, 0.7), spread=0.05)


def face_at(x: float, size: float, turn: complex = 1 + 0j) -> Face:
    """A face `size` wide around (x, 100)."""
    at = Similarity(size * turn, complex(x, 100) - size * turn * (0.5 + 0.5j))
    flat = Face((0.1, 0.1, 0.9, 0.9), 0.99, (0.35, 0.4), (0.65, 0.4), (0.5, 0.7))
    return flat.moved(at)


def spots(face: Face) -> Image.Image:
    """An image, 400 x 300, with a red, a green and a blue disc for eyes and mouth."""
    y, x = np.mgrid[:300, :400] + 0.5
    image = np.zeros((300, 400, 3))
    for channel, point in enumerate(face.points):
        off = (x - point[0]) ** 2 + (y - point[1]) ** 2
        image[:, :, channel] = 255 * np.exp(-off / 50)
    return Image.fromarray(image.astype(np.uint8))


def find_spots(image: Image.Image) -> list[Face]:
    """The centres of the discs, which are a detector of such images; none in black ones."""
    pixels = np.asarray(image, dtype=np.float64)
    pixels = np.where(pixels > 100, pixels, 0)
    if not all(pixels.sum((0, 1)) > 0):
        return []
    y, x = np.mgrid[: image.height, : image.width] + 0.5
    found = [
        (float((x * c).sum() / c.sum()), float((y * c).sum() / c.sum()))
        for c in pixels.transpose(2, 0, 1)
    ]
    if found[0][0] > found[1][0]:  # a mirror image: left is the image's left
        found[:2] = found[1::-1]
    return [Face((0, 0, 10, 10), 1.0, *found)]
