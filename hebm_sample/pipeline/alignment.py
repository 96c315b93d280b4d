"""Photographs in, photographs out: faces are cut as the model's images are, and put back.

What is not aligned is looked at, too: a `FramingWarning` says which image is framed otherwise than
the model's images are, or reconstructs worse than held-out ones do.
"""

import os
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from hebm_sample.align.aligner import Aligned, align, placed
from hebm_sample.align.faces import default_detector, has_detector
from hebm_sample.align.geometry import cut
from hebm_sample.align.notes import HOW, framing_note
from hebm_sample.errors import UserInputError
from hebm_sample.io.extras import install_hint
from hebm_sample.io.images import open_image, to_rgb, upright
from hebm_sample.pipeline.identity import calibration_if_any
from hebm_sample.presets.crops import CROPS, crop_for

if TYPE_CHECKING:
    from hebm_sample.pipeline.model import ImagesLike, Model
    from hebm_sample.pipeline.outputs import Samples

__all__ = [
    "Framed",
    "FramingWarning",
    "aligned_images",
    "crops",
    "frame",
    "framing_notes",
    "warn_of_framing",
]

SHARE = "0.99"  # of held-out images, which reconstruct better than what is said to be unlike them


class FramingWarning(UserWarning):
    """An image does not look as the model's images do."""


@dataclass(frozen=True)
class Framed:
    """Images as a model takes them, and where they came from.

    Arguments:
        images: As for `encode`.
        aligned: Of each image, if faces were aligned.
    """

    images: "ImagesLike"
    aligned: tuple[Aligned, ...] | None = None

    def masks(self, masks: Any) -> Any:
        """Masks of the photographs as masks of the crops; others, of the crop's own size or as
        booleans, as they are.
        """
        if self.aligned is None or isinstance(masks, Tensor):
            return masks
        listed = list(masks) if isinstance(masks, (list, tuple)) else [masks]
        if len(listed) == 1:
            listed *= len(self.aligned)
        return [_mask(m, a) for m, a in zip(listed, self.aligned, strict=False)] + listed[
            len(self.aligned) :
        ]

    def listed(self) -> list[Any]:
        """The images, one after another."""
        return _listed(self.images)

    def showing(self, images: "ImagesLike") -> "Framed":
        """The same with other images, of the same faces: those that the model sees."""
        return replace(self, images=images)

    def repeated(self, count: int) -> "Framed":
        """One image `count` times."""
        aligned = None if self.aligned is None else self.aligned * count
        return Framed(_listed(self.images) * count, aligned)

    def pasted(self, samples: "Samples", paste_back: bool) -> "Samples":
        """The samples with photographs in place of their images, if that was asked for."""
        if not paste_back:
            return samples
        if self.aligned is None:
            raise UserInputError("paste_back needs align=True (--align)")
        images = [a.paste_back(x) for a, x in zip(self.aligned, samples.images, strict=True)]
        return replace(samples, images=images)


def _mask(mask: Any, aligned: Aligned) -> Any:
    image = _opened(mask)
    if image.size != aligned.photo.size:
        return image
    side = aligned.image.width
    values = np.asarray(cut(image, aligned.to_crop, side).convert("L"))
    return Image.fromarray(((values >= 128) * 255).astype(np.uint8))


def frame(
    model: "Model",
    images: "ImagesLike",
    *,
    align: bool = False,
    face: int | None = None,
    paste_back: bool = False,
    output_type: str = "pil",
) -> Framed:
    """Images as they are, or with `align` the crops of their faces. What is framed already stays
    as it is, and so do faces that `aligned_images` cut.

    Raises:
        UserInputError: `face` or `paste_back` without `align`, an `output_type` that photographs
            of many sizes cannot have, or what `aligned_images` raises.
        EnvironmentFailure: The extra `align` is not installed.
    """
    if paste_back and output_type != "pil":
        raise UserInputError(
            f"paste_back gives photographs of their own sizes, so output_type is 'pil' and not "
            f"{output_type!r}"
        )
    if isinstance(images, Framed):
        return images
    given = _listed(images)
    if given and all(isinstance(x, Aligned) for x in given):
        return Framed([x.image for x in given], tuple(given))
    if not align:
        extra = [
            name for name, on in (("face", face is not None), ("paste_back", paste_back)) if on
        ]
        if extra:
            raise UserInputError(f"{' and '.join(extra)} need align=True (--align)")
        return Framed(images)
    aligned = aligned_images(model, images, face)
    return Framed([a.image for a in aligned], tuple(aligned))


def crops(model: "Model", images: "ImagesLike", align: bool, face: int | None) -> "ImagesLike":
    """The images that `frame` gives."""
    return frame(model, images, align=align, face=face).images


def aligned_images(model: "Model", images: "ImagesLike", face: int | None = None) -> list[Aligned]:
    """A face of each image, turned and cut as the model's images are.

    Arguments:
        images: PIL images or paths, one or a list.
        face: Which of each image's, from the left, from 1; the largest if None.

    Raises:
        UserInputError: A model without a crop, tensors, or an image without such a face.
        EnvironmentFailure: The extra `align` is not installed.
    """
    crop = crop_for(model.config)
    if crop is None:
        raise UserInputError(
            f"{model.name} states no face crop, so nothing can be aligned to it; a model of "
            "faces gets one with hebm-train crop FOLDER --data SOURCE"
        )
    if isinstance(images, Tensor):
        raise UserInputError("tensors are taken as they are; give PIL images or paths to align")
    find, size = default_detector(), model.config.generator.image_size
    return [
        align(_opened(x), crop, size, face=face, detector=find, name=name)
        for x, name in zip(_listed(images), _names(images), strict=True)
    ]


def _listed(images: Any) -> list[Any]:
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _opened(image: Any) -> Image.Image:
    return to_rgb(upright(image)) if isinstance(image, Image.Image) else open_image(image)


def _names(images: Any) -> list[str]:
    """What lines call the images: their paths, or their numbers."""
    listed = _listed(images)
    plain = ["the image"] if len(listed) == 1 else [f"image {i + 1}" for i in range(len(listed))]
    return [
        os.fspath(x) if isinstance(x, (str, os.PathLike)) else name
        for x, name in zip(listed, plain, strict=True)
    ]


def warn_of_framing(model: "Model", images: "ImagesLike", framed: Framed) -> None:
    """A `FramingWarning` for each image that is not as the model's images are. Tensors are taken
    as they are, and so is what was aligned.
    """
    if framed.aligned is None and not isinstance(images, (Tensor, Framed)):
        for note in framing_notes(model, images):
            warnings.warn(note, FramingWarning, stacklevel=4)


def framing_notes(model: "Model", images: "ImagesLike") -> list[str]:
    """A line for each image, PIL or path, that is not as the model's images are."""
    images, names = _listed(images), _names(images)
    crop, found = crop_for(model.config), []
    looked = crop is not None and has_detector()
    for image, name in zip(images, names, strict=True):
        points = placed(_opened(image)) if looked else None
        if crop is not None and points is not None:
            note = framing_note(points, model.name, crop, CROPS, name)
        else:
            note = _unusual(model, image, name)
        found += [note] if note else []
    return found


def _unusual(model: "Model", image: Any, name: str) -> str | None:
    """What is said of an image that reconstructs worse than 99 in 100 held-out ones did."""
    from hebm_sample.pipeline.scoring import distortion, score_draws

    calibration = calibration_if_any(model)
    bound = None if calibration is None else calibration.distortion(SHARE)
    if bound is None:
        return None
    if float(distortion(model, model.read_images([image]), score_draws(model))[0]) <= bound:
        return None
    how = "crop it as they are"
    if crop_for(model.config) is not None:
        how = "no face was found" if has_detector() else f"{HOW}, with {install_hint('align')}"
    return (
        f"{name} looks unlike {model.name}'s images, it reconstructs worse than "
        f"{float(SHARE) * 100:g} in 100 held-out ones; {how}"
    )
