"""Images in, whatever they are; photographs in, photographs out: faces are cut as the model's
images are, and put back.

`frame` is the one way in of all that takes images: paths, PIL images, open files, arrays, tensors,
`Samples`, faces that `align` cut, or lists of any of these. What is not aligned is looked at
there: a `FramingWarning` says which image is framed otherwise than the model's images are, or
reconstructs worse than held-out ones do.
"""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import hebm_sample
from hebm_sample.align.aligner import Aligned, align, crop_points, placed
from hebm_sample.align.faces import default_detector, detector_works
from hebm_sample.align.notes import HOW, framing_note
from hebm_sample.config import require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.io.extras import install_hint
from hebm_sample.io.images import grey_mask, open_image, to_rgb, upright, with_alpha
from hebm_sample.pipeline.identity import calibration_if_any
from hebm_sample.pipeline.outputs import Samples, listed
from hebm_sample.presets.crops import CROPS, crop_for

if TYPE_CHECKING:
    from hebm_sample.pipeline.model import ImagesLike, Model

__all__ = [
    "Framed",
    "FramingWarning",
    "aligned_images",
    "caller_level",
    "crops",
    "frame",
    "framing_notes",
]

SHARE = "0.99"  # of held-out images, which reconstruct better than what is said to be unlike them
MOST_FACES = 1000
MOST_LOOKED_AT = 32  # images of a call in Python: finding a face takes longer than encoding it


class FramingWarning(UserWarning):
    """An image does not look as the model's images do."""


@dataclass(frozen=True, eq=False)
class Framed:
    """Images as a model takes them, and where they came from.

    Arguments:
        images: As for `encode`.
        aligned: Of each image the face that it is, None of those that are none; None if none is.
    """

    images: "ImagesLike"
    aligned: tuple[Aligned | None, ...] | None = None

    def __len__(self) -> int:
        """How many images."""
        return len(self.listed())

    def masks(self, masks: Any) -> Any:
        """Masks of the photographs as masks of the crops; those of the crop's own size, and of
        images that are no crops, as they are.
        """
        given = self.photo_masks(masks)
        if self.aligned is None or given is None:
            return masks
        pairs = zip(given, self.aligned, strict=False)
        cut = [m if a is None else a.cut_mask(m) for m, a in pairs]
        return cut + given[len(self.aligned) :]

    def photo_masks(self, masks: Any) -> list[Any] | None:
        """A mask of each image, as it was given; None where no image is from a photograph."""
        if self.aligned is None:
            return None
        given = _each_mask(masks)
        return given * len(self.aligned) if len(given) == 1 else given

    def outside(self, masks: Any) -> float:
        """The largest share of a mask that its photograph's crop leaves out."""
        pairs = zip(self.photo_masks(masks) or [], self.aligned or (), strict=False)
        return max((a.outside(m) for m, a in pairs if a is not None), default=0.0)

    def listed(self) -> list[Any]:
        """The images, one after another."""
        return listed(self.images)

    def showing(self, images: "ImagesLike") -> "Framed":
        """The same with other images, of the same faces: those that the model sees."""
        return replace(self, images=images)

    def repeated(self, count: int) -> "Framed":
        """One image `count` times."""
        aligned = None if self.aligned is None else self.aligned * count
        return Framed(self.listed() * count, aligned)

    def facts(self, face: int | None = None, paste_back: bool = False) -> dict[str, Any]:
        """What files say of it; None where it does not apply."""
        return {
            "align": True if self.aligned is not None else None,
            "face": face,
            "paste_back": paste_back or None,
        }

    def pasted(
        self, samples: Samples, paste_back: bool, masks: Sequence[Any] | None = None
    ) -> Samples:
        """The samples with photographs in place of their images, if that was asked for.

        Arguments:
            masks: Of `photo_masks`: what is pasted; the whole face if None.
        """
        if not paste_back:
            return samples
        aligned = [a for a in self.aligned or () if a is not None]
        if len(aligned) != len(samples):
            raise UserInputError("paste_back needs align=True (--align)")
        each = masks or [None] * len(aligned)
        triples = zip(aligned, samples.images, each, strict=True)
        return replace(samples, images=[a.paste_back(x, mask=m) for a, x, m in triples])


def _each_mask(masks: Any) -> list[Any]:
    """Masks one after another, in grey: images or paths as they are, of booleans (H, W), (N, H, W)
    or (N, 1, H, W) each apart.
    """
    if isinstance(masks, Sequence) and not isinstance(masks, (str, bytes)):
        return [each for mask in masks for each in _each_mask(mask)]
    if len(getattr(masks, "shape", ())) > 2:
        return [each for mask in masks for each in _each_mask(mask)]
    return [grey_mask(masks)]


def frame(
    model: "Model",
    images: "ImagesLike",
    *,
    align: bool = False,
    face: int | None = None,
    paste_back: bool = False,
    output_type: str = "pil",
    photographs: bool = True,
    say: Callable[[list[str]], object] | None = None,
) -> Framed:
    """Images as they are, or with `align` the crops of their faces. What is framed already stays
    as it is, and so do faces that `aligned_images` cut.

    What is neither, and no array of numbers or `Samples` of the model's size, is looked at.

    Arguments:
        photographs: Keep those that faces are cut from, for masks and to paste back into: many
            large ones take much memory.
        say: Told what there is to say of images that are not as the model's are; by default a
            `FramingWarning` a call says it, of at most `MOST_LOOKED_AT` images.

    Raises:
        UserInputError: `face` or `paste_back` without `align`, an `output_type` that photographs
            of many sizes cannot have, a face that was cut for another model, or what
            `aligned_images` raises.
        EnvironmentFailure: The extra `align` is not installed.
    """
    if paste_back and output_type != "pil":
        raise UserInputError(
            f"paste_back gives photographs of their own sizes, so output_type is 'pil' and not "
            f"{output_type!r}"
        )
    if isinstance(images, Framed):
        return images
    if not align and _is_taken_as_it_is(model, images):
        _check_words((), face, paste_back)
        return Framed(images)
    given = [open_image(x, alpha=align) if hasattr(x, "read") else x for x in listed(images)]
    if align:
        aligned: list[Aligned | None] = [*aligned_images(model, given, face, photographs)]
    else:
        _check_words(given, face, paste_back)
        aligned = [_fitting(model, x, name) for x, name in zip(given, _names(given), strict=True)]
        _look_at(model, given, say)
    shown = [x if a is None else a.image for x, a in zip(given, aligned, strict=True)]
    return Framed(shown, tuple(aligned) if any(a is not None for a in aligned) else None)


def _is_taken_as_it_is(model: "Model", images: Any) -> bool:
    """Whether these are numbers, or samples of the model's size."""
    if isinstance(images, Samples):
        size = model.config.generator.image_size
        found = images.images
        return not isinstance(found, list) or all(x.size == (size, size) for x in found)
    return isinstance(images, (Tensor, np.ndarray))


def _check_words(given: Sequence[Any], face: int | None, paste_back: bool) -> None:
    """What needs `align`, without it: faces that were cut before can be pasted, not chosen."""
    cut = bool(given) and all(isinstance(x, Aligned) for x in given)
    words = {"face": face is not None, "paste_back": paste_back and not cut}
    extra = [word for word, is_asked in words.items() if is_asked]
    if extra:
        raise UserInputError(f"{' and '.join(extra)} need align=True (--align)")


def _fitting(model: "Model", image: Any, name: str) -> Aligned | None:
    """A face that was cut as the model's images are; None for other images."""
    if not isinstance(image, Aligned):
        return None
    own, crop = crop_for(model.config), image.crop
    if (
        own is not None
        and crop is not None
        and crop_points(own).tolist() != crop_points(crop).tolist()
    ):
        raise UserInputError(
            f"the face in {name} was cut for another model, and not as {model.name}'s images are; "
            "align its photograph to this one: pipe.align(face.photo)"
        )
    return image


def _look_at(
    model: "Model", images: Sequence[Any], say: Callable[[list[str]], object] | None
) -> None:
    """Say which images are not as the model's are."""
    if say is not None:
        say(framing_notes(model, images))
        return
    notes = framing_notes(model, images[:MOST_LOOKED_AT])
    if notes:
        more = f"; and {len(notes) - 1} more: pipe.framing_notes(images)" if notes[1:] else ""
        warnings.warn(notes[0] + more, FramingWarning, stacklevel=caller_level())


def caller_level() -> int:
    """The `stacklevel` of a warning about the call that came into the package."""
    inside = tuple(str(Path(p.__file__ or "").parent) + os.sep for p in (hebm_sample, torch))
    here, level = sys._getframe(1), 1
    while here.f_back is not None and here.f_code.co_filename.startswith(inside):
        here, level = here.f_back, level + 1
    return level


def crops(model: "Model", images: "ImagesLike", align: bool, face: int | None) -> Framed:
    """What `frame` gives, which all that reads images takes without looking at it again."""
    return frame(model, images, align=align, face=face, photographs=False)


def aligned_images(
    model: "Model", images: "ImagesLike", face: int | None = None, photographs: bool = True
) -> list[Aligned]:
    """A face of each image, turned and cut as the model's images are.

    Arguments:
        images: PIL images, paths or `Samples`, one or a list. Faces that were cut before stay.
        face: Which of each image's, from the left, from 1; the largest if None.
        photographs: Keep them; otherwise the crop stands in the photograph's place.

    Raises:
        UserInputError: A model without a crop, arrays of numbers, an image without such a face, or
            a face that was cut for another model.
        EnvironmentFailure: The extra `align` is not installed.
    """
    crop, given = crop_for(model.config), listed(images)
    if crop is None:
        raise UserInputError(
            f"{model.name} states no face crop, so nothing can be aligned to it; a model of "
            "faces gets one with hebm-train crop FOLDER --data SOURCE"
        )
    if any(isinstance(x, (Tensor, np.ndarray)) for x in given):
        raise UserInputError(
            "arrays and tensors are taken as they are; give PIL images or paths to align"
        )
    if face is not None:
        require_integer("face", face, 1, MOST_FACES)
        if given and all(isinstance(x, Aligned) for x in given):
            raise UserInputError("face names a photograph's, and these are cut; leave face out")
    find, size = default_detector(), model.config.generator.image_size

    def cut(image: Any, name: str) -> Aligned:
        found = align(_photo(image), crop, size, face=face, detector=find, name=name)
        return found if photographs else replace(found, photo=found.image)

    return [
        _fitting(model, x, name) or cut(x, name)
        for x, name in zip(given, _names(given), strict=True)
    ]


def _photo(image: Any) -> Image.Image:
    """RGB, or RGBA where it has transparency."""
    if isinstance(image, Image.Image):
        return with_alpha(upright(image))
    return open_image(image, alpha=True)


def _opened(image: Any) -> Image.Image:
    return to_rgb(_photo(image))


def _names(images: Sequence[Any]) -> list[str]:
    """What lines call the images: their paths, or their numbers."""
    plain = ["the image"] if len(images) == 1 else [f"image {i + 1}" for i in range(len(images))]
    return [
        os.fspath(x) if isinstance(x, (str, os.PathLike)) else name
        for x, name in zip(images, plain, strict=True)
    ]


def framing_notes(model: "Model", images: "ImagesLike") -> list[str]:
    """A line for each image, PIL or path, that is not as the model's images are; none for arrays
    of numbers and for faces that `align` cut.
    """
    images = listed(images)
    names = _names(images)
    crop, found = crop_for(model.config), []
    looked = crop is not None and detector_works()
    for image, name in zip(images, names, strict=True):
        if isinstance(image, (Aligned, Tensor, np.ndarray)):
            continue
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
        how = "no face was found" if detector_works() else f"{HOW}, with {install_hint('align')}"
    return (
        f"{name} looks unlike {model.name}'s images, it reconstructs worse than "
        f"{float(SHARE) * 100:g} in 100 held-out ones; {how}"
    )
