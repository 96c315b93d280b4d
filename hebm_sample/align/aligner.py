"""A photograph's face as the crop that a model takes, and the crop back in its photograph."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from hebm_sample.align.faces import Detector, Face, choose, default_detector
from hebm_sample.align.geometry import FEATHER, Similarity, cut, fit, paste
from hebm_sample.config import FaceCrop
from hebm_sample.errors import UserInputError
from hebm_sample.io.images import ImageLike, as_image, grey_mask, to_rgb

__all__ = ["Aligned", "align", "crop_points", "distance", "distance_from", "placed"]

# The mouth says how tall a face is that looks aside, but smiles move it.
_WEIGHTS = (1.0, 1.0, 0.1)
_SEEN_SIDE = 256  # of the crop in which the face is found again
_REFINEMENTS = 2
_PARTLY = 32  # of 255: a pixel of the crop of which an eighth is masked is not known
_FARTHEST = 0.25  # of the side, from where the face should be: another face


@dataclass(frozen=True)
class Aligned:
    """A face that was cut from a photograph.

    Arguments:
        photo: Where it is from, RGB, or RGBA where it has transparency.
        image: The crop, RGB, square.
        face: As it was found, in the photograph's pixels.
        to_crop: From the photograph's pixels to the crop's unit square.
        count: How many faces the photograph has.
        crop: Where the crop has eyes and mouth; None if nobody says.
    """

    photo: Image.Image
    image: Image.Image
    face: Face
    to_crop: Similarity
    count: int = 1
    crop: FaceCrop | None = None

    def paste_back(
        self,
        edited: ImageLike,
        feather: float = FEATHER,
        *,
        mask: ImageLike | np.ndarray | None = None,
    ) -> Image.Image:
        """The photograph with a square image, of any size, in the crop's place.

        What lies outside the crop stays as it is, to the bit.

        Arguments:
            edited: A PIL image, or a path.
            feather: Over how much of the side the edge fades.
            mask: White, or true, where the image was filled in; of the photograph's size, or of
                the crop's. Then only that is pasted, with a band around it that fades over a 32nd
                of the crop's side; all else stays as it is, to the bit. Where the mask crosses
                the crop's border, what is pasted fades towards that.

        Raises:
            UserInputError: The image is not square, or the mask is of another size than both.
        """
        grey = None if mask is None else self._checked(grey_mask(mask))
        square = to_rgb(as_image(edited))
        if square.width != square.height:
            raise UserInputError(
                f"the image has {square.width} x {square.height} pixels; a crop is square"
            )
        return paste(self.photo, square, self.to_crop, feather, grey)

    def cut_mask(self, mask: ImageLike | np.ndarray) -> Image.Image:
        """A mask of the photograph as one of the crop, black and white; one of the crop as it is.

        A pixel of the crop that is masked in part is masked.

        Raises:
            UserInputError: The mask is of another size than either.
        """
        grey = self._checked(grey_mask(mask))
        if grey.size != self.photo.size:
            return grey
        white = grey.point([0] * 128 + [255] * 128)
        found = cut(white.convert("RGB"), self.to_crop, self.image.width).convert("L")
        covered = np.asarray(found) >= _PARTLY
        # Of a pixel of the photograph that is less of a crop's than that, the pixel it lies in.
        at = self._masked(grey)
        inside = at[((at >= 0) & (at < 1)).all(axis=1)]
        columns, rows = (inside * np.array(found.size)).astype(int).T
        covered[rows, columns] = True
        return Image.fromarray(covered.astype(np.uint8) * 255)

    def _masked(self, grey: Image.Image) -> np.ndarray:
        """Where the masked pixels of the photograph lie in the crop's unit square, (N, 2)."""
        rows, columns = np.nonzero(np.asarray(grey) >= 128)
        return self.to_crop(np.stack([columns, rows], axis=-1) + 0.5)

    def outside(self, mask: ImageLike | np.ndarray) -> float:
        """The share of a mask that lies outside the crop; 0 of a mask of the crop."""
        grey = self._checked(grey_mask(mask))
        if grey.size != self.photo.size:
            return 0.0
        at = self._masked(grey)
        return float(((at < 0) | (at > 1)).any(axis=1).mean()) if len(at) else 0.0

    def _checked(self, mask: Image.Image) -> Image.Image:
        if mask.size not in (self.photo.size, self.image.size):
            raise UserInputError(
                f"the mask has {mask.width} x {mask.height} pixels; the photograph has "
                f"{self.photo.width} x {self.photo.height}: give a mask of that size, or of the "
                f"crop's {self.image.width} x {self.image.height}"
            )
        return mask

    def __repr__(self) -> str:
        """Where it lies."""
        x, y = self.to_crop.inverse()(np.array([[0.5, 0.5]]))[0]
        return (
            f"<Aligned: {self.image.width} x {self.image.height}, around ({x:.0f}, {y:.0f}), "
            f"turned by {-self.to_crop.degrees:.1f} degrees>"
        )


def crop_points(crop: FaceCrop) -> np.ndarray:
    """Left eye, right eye and mouth in the crop's unit square, (3, 2)."""
    return np.array([crop.left_eye, crop.right_eye, crop.mouth])


def align(
    photo: Image.Image,
    crop: FaceCrop,
    side: int,
    *,
    face: int | None = None,
    detector: Detector | None = None,
    name: str = "the image",
) -> Aligned:
    """Find a face, turn it and cut it as a model's images are cut.

    It is found again in the crop, which is what the crop's positions were measured in: the
    detector errs there as it did then.

    Arguments:
        photo: RGB or RGBA, upright.
        crop: Where eyes and mouth shall be.
        side: Of the result, in pixels.
        face: Which, numbered from the left, from 1; the largest if None.
        detector: That of the extra `align` if None.
        name: What the errors call the image.

    Raises:
        UserInputError: There is no face, or no such number.
        EnvironmentFailure: The extra is not installed.
    """
    find = default_detector() if detector is None else detector
    seen = to_rgb(photo)
    faces = find(seen)
    chosen, target = choose(faces, face, name), crop_points(crop)
    to_crop = fit(chosen.points, target, _WEIGHTS)
    for _ in range(_REFINEMENTS):
        again = _in_square(cut(seen, to_crop, _SEEN_SIDE), find, target)
        if again is None:
            break
        to_crop = fit(again, target, _WEIGHTS).after(to_crop)
    return Aligned(photo, cut(seen, to_crop, side), chosen, to_crop, len(faces), crop)


def _in_square(square: Image.Image, find: Detector, near: np.ndarray | None) -> np.ndarray | None:
    """Eyes and mouth of a square image in its unit square, (3, 2): the mean of what is found in it
    and in its mirror image, which halves the detector's noise.

    Arguments:
        near: Where they should be about; of several faces the nearest counts, and one that is far
            away does not. The largest face if None.
    """
    first = _chosen(square, find, near)
    if first is None:
        return None
    mirror = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    second = _chosen(mirror, find, _mirrored(first))
    return first if second is None else (first + _mirrored(second)) / 2


def _chosen(square: Image.Image, find: Detector, near: np.ndarray | None) -> np.ndarray | None:
    faces = find(square)
    if near is None:
        return choose(faces).points / square.width if faces else None
    found = [face.points / square.width for face in faces]
    found = [points for points in found if distance(points, near) < _FARTHEST]
    return min(found, key=lambda points: distance(points, near)) if found else None


def _mirrored(points: np.ndarray) -> np.ndarray:
    """Left eye, right eye and mouth in the mirror image of a unit square."""
    return points[[1, 0, 2]] * np.array([-1.0, 1.0]) + np.array([1.0, 0.0])


def distance(points: np.ndarray, target: np.ndarray) -> float:
    """Root mean square of how far points (N, 2) lie from others."""
    return float(np.sqrt(((points - target) ** 2).sum(axis=1).mean()))


def distance_from(crop: FaceCrop, points: np.ndarray) -> float:
    """How far eyes and mouth (3, 2), in fractions of the side, lie from a crop's."""
    return distance(points, crop_points(crop))


def placed(image: Image.Image, detector: Detector | None = None) -> np.ndarray | None:
    """Eyes and mouth of an image's largest face in its middle square, (3, 2), as fractions of that
    square's side; None if there is no face.
    """
    find = default_detector() if detector is None else detector
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return _in_square(square, find, None)
