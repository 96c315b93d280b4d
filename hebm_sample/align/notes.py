"""What is said of an image that is not framed as a model's images are."""

from collections.abc import Mapping

import numpy as np

from hebm_sample.align.aligner import distance_from
from hebm_sample.config import FaceCrop

__all__ = ["HOW", "framing_note"]

HOW = "align it (--align, align=True)"


def framing_note(
    points: np.ndarray, model: str, crop: FaceCrop, others: Mapping[str, FaceCrop], name: str
) -> str | None:
    """One line if a face lies otherwise than 99 in 100 of a model's; whose images it is framed as,
    where there is such a model. None if it lies as it should.

    Arguments:
        points: Eyes and mouth (3, 2), as fractions of the side.
        crop: The model's.
        others: Crops by the names of models.
        name: What the line calls the image.
    """
    far = distance_from(crop, points)
    if far <= crop.spread:
        return None
    near = {
        other: off
        for other, c in others.items()
        if other != model and (off := distance_from(c, points)) <= c.spread and off < far
    }
    if near:
        best = min(near, key=near.__getitem__)
        return f"the face in {name} lies as in {best}'s images, not as in {model}'s; {HOW}"
    return (
        f"the face in {name} lies {far:.0%} of the side from where {model}'s images have eyes and "
        f"mouth, where 99 in 100 are within {crop.spread:.0%}; {HOW}"
    )
