"""Faces and who finds them: a protocol, so that another detector takes its place in one class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from PIL import Image

from hebm_sample.errors import EnvironmentFailure, UserInputError

__all__ = ["Detector", "Face", "choose", "default_detector", "has_detector"]


@dataclass(frozen=True)
class Face:
    """A face in an image, in pixels; left and right are the image's.

    Arguments:
        box: Left, top, right, bottom.
        score: The detector's probability.
        left_eye, right_eye, mouth: (x, y); the mouth's middle.
    """

    box: tuple[float, float, float, float]
    score: float
    left_eye: tuple[float, float]
    right_eye: tuple[float, float]
    mouth: tuple[float, float]

    @property
    def points(self) -> np.ndarray:
        """Left eye, right eye and mouth, (3, 2)."""
        return np.array([self.left_eye, self.right_eye, self.mouth])

    @property
    def area(self) -> float:
        """Of the box."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    def moved(self, change: Callable[[np.ndarray], np.ndarray]) -> "Face":
        """Where a map of points (N, 2) leads it; the box is that around the led corners."""
        left, top, right, bottom = self.box
        corners = change(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]))
        low, high = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        eyes_and_mouth = [(float(x), float(y)) for x, y in change(self.points)]
        return Face((*low, *high), self.score, *eyes_and_mouth)


class Detector(Protocol):
    """Finds faces with their eyes and mouths."""

    def __call__(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB image, from left to right."""
        ...


def choose(faces: Sequence[Face], face: int | None = None, name: str = "the image") -> Face:
    """The largest face, or number `face` from the left, from 1.

    Raises:
        UserInputError: There is none, or no such number.
    """
    if not faces:
        raise UserInputError(
            f"no face was found in {name}; give an upright photograph in which eyes and mouth are "
            "seen, or an image that is cropped already, without align"
        )
    if face is None:
        return max(faces, key=lambda found: found.area)
    if not 1 <= face <= len(faces):
        count = "1 face was" if len(faces) == 1 else f"{len(faces)} faces were"
        raise UserInputError(
            f"face {face} was asked for, but {count} found in {name}; they are numbered from left "
            "to right, from 1"
        )
    return sorted(faces, key=lambda found: found.box[0] + found.box[2])[face - 1]


def has_detector() -> bool:
    """Whether the extra `align` is installed."""
    from importlib.util import find_spec

    return find_spec("mtcnn") is not None and find_spec("lz4") is not None


def detector_works() -> bool:
    """Whether it is installed and can be loaded: of another release it cannot, which nobody need
    hear of who did not ask for a face.
    """
    if not has_detector():
        return False
    try:
        default_detector()
    except EnvironmentFailure:
        return False
    return True


@cache
def default_detector() -> Detector:
    """The detector of the extra `align`.

    Raises:
        EnvironmentFailure: The extra is not installed.
    """
    from hebm_sample.align.mtcnn import Mtcnn

    return Mtcnn.installed()
