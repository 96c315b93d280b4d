"""Where the faces of a model's images have their eyes and mouths."""

from dataclasses import dataclass

from hebm_sample.config.base import ConfigBase, require, require_range
from hebm_sample.errors import short

__all__ = ["FaceCrop"]

Point = tuple[float, ...]

_NAMES = ("left_eye", "right_eye", "mouth")


@dataclass(frozen=True)
class FaceCrop(ConfigBase):
    """The crop that a model's images of faces have: medians over its training data.

    Positions are (x, y) as fractions of the image's side, from its upper left corner. Left and
    right are the image's, not the person's.

    Arguments:
        left_eye, right_eye: The eyes' centres.
        mouth: Midway between the mouth's corners.
        spread: Of 99 in 100 of the data's faces, the most by which the three points lie beside the
            positions here: root mean square, as a fraction of the side.

    >>> FaceCrop((0.35, 0.4), (0.65, 0.4), (0.5, 0.75), spread=0.06).mouth
    (0.5, 0.75)
    """

    left_eye: Point
    right_eye: Point
    mouth: Point
    spread: float = 0.06

    def __post_init__(self) -> None:
        for name in _NAMES:
            point = getattr(self, name)
            require(len(point) == 2, f"{name} is {short(point)}; it must be [x, y]")
            for value in point:
                require_range(name, value, 0.0, 1.0)
        require_range("spread", self.spread, 0.0, 1.0)
        across = self.right_eye[0] - self.left_eye[0]
        below = self.mouth[1] - max(self.left_eye[1], self.right_eye[1])
        require(
            across > 0 and below > 0,
            f"the eyes are at {self.left_eye} and {self.right_eye}, the mouth at {self.mouth}; "
            "left_eye must be left of right_eye, and the mouth below both",
        )
