"""A visitor's image: read within bounds, its face aligned, and an edited face put back into it."""

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hebm_sample.cli.work import editing
from hebm_sample.demo.images import DemoImage
from hebm_sample.demo.recipes import named_edit, named_inpaint
from hebm_sample.demo.steps import Edit, Inpaint, ModelName, Origin, PasteBack, Upload, safe_name
from hebm_sample.errors import UserInputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from hebm_sample.align.aligner import Aligned
    from hebm_sample.config import ModelConfig
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["MAX_UPLOAD_BYTES", "Photo", "aligns", "paste_back", "too_large", "upload"]

MAX_UPLOAD_BYTES = 10 * 2**20
MAX_UPLOAD_PIXELS = 2**25  # 33 megapixels: what cameras and telephones make
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "PPM", "TIFF")  # that are read
SHOWN_SIDE = 1600  # of a photograph in the page


@dataclass(frozen=True)
class Photo:
    """A photograph in which a face was found. Its pixels are read again when they are needed.

    Arguments:
        upload: What it is called.
        data: Its file.
        face: Where the face lies, and the crop.
    """

    upload: Upload
    data: bytes
    face: "Aligned"

    def with_face(self, image: "Image", mask: "Image | None" = None) -> "Image":
        """The photograph with another image of the crop in its place.

        Arguments:
            mask: Of the crop, white where the image was filled in, and only that is put there.
        """
        whole = replace(self.face, photo=_opened(self.data, self.upload.name))
        return whole.paste_back(image, mask=mask)


def aligns(config: "ModelConfig") -> bool:
    """Whether faces can be aligned to a model: it states a crop, and the extra is installed."""
    from hebm_sample.align.faces import has_detector
    from hebm_sample.presets.crops import crop_for

    return crop_for(config) is not None and has_detector()


def upload(
    pipe: "Pipeline", name: str, data: bytes, model: ModelName | None = None
) -> tuple[DemoImage, str]:
    """A visitor's file as the model sees it: the middle square, or the largest face, at the
    model's size; and a line that says which. Where there is no face it is the middle square.

    Arguments:
        name: What its sender calls it.
        data: The file.
        model: What loads `pipe`, to align the face to it; None takes the middle square.

    Raises:
        UserInputError: It is no image of a format that is read, or too large.
        EnvironmentFailure: It is damaged, or the extra `align` is not installed.
    """
    from hebm_sample.io.images import png_bytes

    name = safe_name(name)
    if len(data) > MAX_UPLOAD_BYTES:
        raise too_large(name)
    image, step = _opened(data, name), Upload(name, model)
    if model is None:
        line = "the middle square of your image"
        if pipe.framing_notes(image):
            how = "; turn on Align the face" if aligns(pipe.config) else ""
            line += f", which is unlike this model's images{how}"
        return _square(pipe, image, name), line
    try:
        (face,) = pipe.align([image])
    except UserInputError:
        line = f"no face was found in {name}, so this is its middle square"
        return _square(pipe, image, name), line
    photo = Photo(step, data, replace(face, photo=face.image))
    found = "the face" if face.count == 1 else f"the largest of the {face.count} faces"
    shown = DemoImage(png_bytes(face.image), "your image, aligned", Origin(step), photo=photo)
    return shown, f"{found} of your image, aligned"


def _square(pipe: "Pipeline", image: "Image", name: str) -> DemoImage:
    from hebm_sample.io.images import png_bytes, prepare, to_pil

    square = to_pil(prepare(image, pipe.config.generator.image_size))[0]
    return DemoImage(png_bytes(square), "your image", Origin(Upload(name)))


def too_large(name: str) -> UserInputError:
    """What is said of a file that is not read."""
    return UserInputError(
        f"{safe_name(name)} is larger than {MAX_UPLOAD_BYTES >> 20} MB; give a smaller image"
    )


def _opened(data: bytes, name: str) -> "Image":
    from hebm_sample.io.images import open_image

    file = io.BytesIO(data)
    file.name = name  # what messages call it
    _check_pixels(file, name)
    return open_image(file, alpha=True)


def _check_pixels(file: io.BytesIO, name: str) -> None:
    """Refuse by its header what would take long to decode; what is no image passes."""
    from PIL import Image

    try:
        with Image.open(file, formats=_FORMATS) as image:
            pixels = image.width * image.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pixels = 0
    file.seek(0)
    if pixels > MAX_UPLOAD_PIXELS:
        raise UserInputError(
            f"{name} has {pixels / 1e6:.0f} megapixels; this page reads at most "
            f"{MAX_UPLOAD_PIXELS / 1e6:.0f}: give a smaller image"
        )


def _mask_of(step: PasteBack, source: DemoImage) -> "Image | None":
    """Of an image that was filled in, and nothing else: its mask."""
    made = step.source.step
    if not (isinstance(made, Inpaint) and made.source.step == step.photo):
        return None
    return _opened(dict(source.files)[made.mask_name], made.mask_name)


def paste_back(pipe: "Pipeline", step: PasteBack, source: DemoImage) -> list[DemoImage]:
    """The source, and the photograph that it is from with it in the face's place; a large one is
    reduced.
    """
    from hebm_sample.io.images import png_bytes

    if source.photo is None:
        raise UserInputError("this image is not from a photograph; align one of your own first")
    mask = _mask_of(step, source)
    whole, caption = source.photo.with_face(source.image, mask), "in your photograph"
    if max(whole.size) > SHOWN_SIDE:
        whole.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        caption += f", reduced to {whole.width}×{whole.height}: the lines make it whole"
    return [source, DemoImage(png_bytes(whole, _said(pipe, step, source)), caption, Origin(step))]


def _said(pipe: "Pipeline", step: PasteBack, source: DemoImage) -> dict[str, str]:
    """What the photograph's file says: of an image that was made of its face alone, what the
    command that pastes it back writes.
    """
    from hebm_sample.io.images import read_text

    made = step.source.step
    if not (isinstance(made, Edit | Inpaint) and made.source.step == step.photo):
        return {**read_text(io.BytesIO(source.png)), "sheet": "photograph"}
    options = named_edit(made) if isinstance(made, Edit) else named_inpaint(made)
    seed = options.chosen_seeds[step.source.index]
    options = replace(options, paste_back=True, seeds=(seed,))
    return editing.single_text(options, editing.provenance_of(pipe, options), 0)
