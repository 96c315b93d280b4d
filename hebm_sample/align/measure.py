"""Measuring a crop: where the faces of a data set have their eyes and mouths."""

from collections.abc import Iterable

import numpy as np
from PIL import Image

from hebm_sample.align.aligner import distance_from, placed
from hebm_sample.align.faces import Detector
from hebm_sample.config import FaceCrop
from hebm_sample.errors import UserInputError

__all__ = ["FEWEST_FACES", "crop_of", "measure_crop"]

FEWEST_FACES = 50
_SHARE = 0.99  # of the faces, which lie within the spread
_DIGITS = 4


def crop_of(points: np.ndarray) -> FaceCrop:
    """Medians of eyes and mouths (N, 3, 2), fractions of the side, and how far 99 in 100 lie from
    them. The two sides are made even, since data are mirrored in training.

    Raises:
        UserInputError: Fewer than 50 faces.
    """
    if len(points) < FEWEST_FACES:
        raise UserInputError(
            f"a face was found in {len(points)} images; a crop is measured on {FEWEST_FACES} or "
            "more"
        )
    mirrored = points[:, [1, 0, 2]] * np.array([-1.0, 1.0]) + np.array([1.0, 0.0])
    medians = np.median(np.concatenate([points, mirrored]), axis=0)
    left, right, mouth = (tuple(round(float(v), _DIGITS) for v in point) for point in medians)
    crop = FaceCrop(left, right, mouth)
    far = [distance_from(crop, face) for face in points]
    spread = round(float(np.quantile(far, _SHARE)), _DIGITS)
    return FaceCrop(left, right, mouth, spread)


def measure_crop(images: Iterable[Image.Image], detector: Detector | None = None) -> FaceCrop:
    """The crop of RGB images; those without a face are left out.

    Raises:
        UserInputError: Fewer than 50 faces.
        EnvironmentFailure: The extra `align` is not installed.
    """
    found = (placed(image, detector) for image in images)
    faces = [points for points in found if points is not None]
    return crop_of(np.array(faces).reshape(-1, 3, 2))
