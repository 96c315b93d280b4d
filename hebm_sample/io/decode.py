"""Image files to 8-bit RGB.

The first frame of the formats below is read; the size is checked before any pixel is decoded; the
EXIF orientation is applied; transparency is laid on white, or kept where that is asked for;
palettes, grey, CMYK and 16-bit grey become 8-bit RGB. Colours of an embedded ICC profile become
sRGB's; a profile that does not fit its image, and texts, are ignored, whatever their size. What a
decoder raises is its file's fault: one error, whichever of its many it was.
"""

import errno
import io
import os
import stat
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import IO, Any, TypeAlias, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.io.files import printable, short

__all__ = ["MAX_PIXELS", "WHITE", "Source", "open_image", "to_rgb", "upright", "with_alpha"]

Source: TypeAlias = str | os.PathLike[str] | IO[bytes]

# 8192 x 8192: larger than cameras make, small enough to decode and convert within 1 GiB, since
# large ones are decoded one at a time and converted a strip at a time.
MAX_PIXELS = 2**26
_LARGE_PIXELS = 2**24
_STRIP_PIXELS = 2**20
MAX_STREAM_BYTES = 2**29
WHITE = (255, 255, 255)
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "PPM", "TIFF")
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_large = threading.Lock()
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    # A broken EXIF block says nothing about the pixels; such an image is taken as it lies.
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        return 1


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says, which the result no longer has; the image
    itself where it says nothing.
    """
    image.load()  # Pillow turns TIFF files itself as soon as they are loaded
    turn = _TRANSPOSITIONS.get(_orientation(image))
    if turn is None:
        return image
    if image.mode.startswith("I"):  # a copy does not say how its numbers are meant
        image = to_rgb(image)
    turned = image.transpose(turn)
    # Whatever else may hold the orientation (EXIF, XMP) is left behind.
    turned.info = {k: v for k, v in image.info.items() if k in ("transparency", "icc_profile")}
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit sRGB: 16-bit grey is scaled by 1/257, transparency laid on white.

    Raises `UserInputError` for floating point images and whole numbers of more bits, whose range
    is anybody's guess.
    """
    image = _in_srgb(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        top, inverted = _grey_range(image)
        return _by_strips(image, partial(_from_integers, top=top, inverted=inverted))
    if image.mode == "F":
        raise UserInputError(
            "the image holds floating point numbers; convert it to 8-bit RGB first"
        )
    try:
        if not image.has_transparency_data:
            return image.convert("RGB")
        return _by_strips(image, _on_white)
    except ValueError:  # La, grey multiplied by its transparency
        raise UserInputError(
            f"the image is of mode {image.mode}; convert it to 8-bit RGB first"
        ) from None


def with_alpha(image: Image.Image) -> Image.Image:
    """As `to_rgb`, but RGBA where the image has transparency: the colours are its own."""
    if image.mode.startswith(("I", "F", "La")) or not image.has_transparency_data:
        return to_rgb(image)
    return _in_srgb(image).convert("RGBA")


def _in_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB, without the ICC profile that it had; the image itself where it has none,
    that of sRGB, or one that does not fit it.
    """
    data = image.info.get("icc_profile")
    if not isinstance(data, bytes) or not data or image.mode.startswith(("I", "F")):
        return image
    try:
        from PIL import ImageCms

        cms: Any = ImageCms
        profile = cms.ImageCmsProfile(io.BytesIO(data))
        if "sRGB" in cms.getProfileDescription(profile):
            return image
        space = str(profile.profile.xcolor_space).strip()
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[space]
        if (mode == "CMYK") != (image.mode == "CMYK"):
            return image
        if mode == "L" and image.mode not in ("1", "L", "LA"):
            return image  # colours that a profile of grey knows nothing of
        srgb = cms.createProfile("sRGB")
        change = cms.buildTransform(profile, srgb, mode, "RGB")
        colours = image if image.mode == mode else image.convert(mode)
        found = _by_strips(colours, change.apply)
    except Exception:  # whatever LittleCMS raises, or that it is not there
        return image
    if image.has_transparency_data:
        found.putalpha(image.convert("RGBA").getchannel("A"))
    return found


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """As RGB by `convert`, whose copies take no more memory than a strip's."""
    result = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        result.paste(convert(strip), (0, top))
    return result


def _on_white(image: Image.Image) -> Image.Image:
    over = image.convert("RGBA")
    white = Image.new("RGBA", over.size, (*WHITE, 255))
    return Image.alpha_composite(white, over).convert("RGB")


def _grey_range(image: Image.Image) -> tuple[int, bool]:
    """(the value of full light, whether 0 is white) of grey in more than 8 bits.

    Raises `UserInputError` for a TIFF file of signed numbers, or of 32 bits.
    """
    tags: Any = getattr(image, "tag_v2", {})
    if image.format == "TIFF" and image.mode == "I":
        raise _no_range()
    bits: Any = tags.get(_TIFF_BITS, (16,))
    return (4095 if tuple(bits) == (12,) else 65535), tags.get(_TIFF_PHOTOMETRIC) == 0


def _no_range() -> UserInputError:
    return UserInputError(
        "the image holds whole numbers of 32 bits, or negative ones; convert it to 8-bit RGB first"
    )


def _from_integers(image: Image.Image, top: int, inverted: bool) -> Image.Image:
    """16-bit grey as RGB; its transparent value, if it has one, as white."""
    values = np.asarray(image)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise _no_range()
    light = top - values.astype(np.float64) if inverted else values.astype(np.float64)
    grey = np.rint(light * 255.0 / top).clip(0, 255).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _named(source: Source) -> str:
    """For messages: a name can hold what no line of a terminal should."""
    if isinstance(source, (str, os.PathLike)):
        return printable(os.fspath(source))
    return printable(str(getattr(source, "name", "the image")))


def _seekable(source: Source, name: str) -> Source:
    """The source, or what a stream holds, as a file in memory."""
    if isinstance(source, (str, os.PathLike)):
        mode = os.stat(source).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return source
        with open(source, "rb") as stream:
            return _all_of(stream, name)
    try:
        source.seek(source.tell())
        return source
    except (OSError, AttributeError, io.UnsupportedOperation):
        return _all_of(source, name)


def _all_of(stream: IO[bytes], name: str) -> IO[bytes]:
    data = stream.read(MAX_STREAM_BYTES + 1)
    if len(data) > MAX_STREAM_BYTES:
        raise UserInputError(
            f"cannot read {name}: it has more than {MAX_STREAM_BYTES} bytes; save it as a file"
        )
    return io.BytesIO(data)


def _open(source: Source, name: str) -> Image.Image:
    """Header only: known format, acceptable size."""
    try:
        image = Image.open(source, formats=_FORMATS)
    except UnidentifiedImageError:
        raise UserInputError(
            f"cannot read {name}: it is not a {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} "
            "image; convert it first"
        ) from None
    if image.width * image.height > MAX_PIXELS:
        with image:
            raise UserInputError(
                f"cannot read {name}: {image.width} x {image.height} is more than "
                f"{MAX_PIXELS} pixels"
            )
    return image


def _decode(source: Source, name: str, alpha: bool) -> Image.Image:
    # Pillow's warnings are let through: silencing them is a switch of the whole process, and
    # images are decoded in threads.
    with (
        _open(source, name) as image,
        _large if image.width * image.height > _LARGE_PIXELS else nullcontext(),
    ):
        _halve_transparency(image)
        image.load()
        # A copy: the file behind the opened image is about to close.
        rgb = with_alpha(image) if alpha else to_rgb(image)
        turn = _TRANSPOSITIONS.get(_orientation(image))
        rgb = rgb.copy() if turn is None else rgb.transpose(turn)
    # It is upright: whoever gets it must not turn it once more.
    rgb.info = {}
    return rgb


def _halve_transparency(image: Image.Image) -> None:
    """The transparent colour of 16 bits as the 8 that its pixels are reduced to."""
    colour: Any = image.info.get("transparency")
    tile = cast("list[Any]", getattr(image, "tile", []))
    if isinstance(colour, tuple) and any("16" in str(part[-1]) for part in tile):
        values = cast("tuple[int, ...]", colour)
        image.info["transparency"] = tuple(int(v) >> 8 for v in values)


def _without_texts(source: Source) -> IO[bytes] | None:
    """A PNG without its texts and its profile, of which Pillow refuses large ones; None of
    another format.
    """
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            data = file.read()
    else:
        source.seek(0)
        data = source.read()
    if not data.startswith(_PNG):
        return None
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _TEXTS:
            kept.append(data[at:end])
        at = end
    kept.append(data[at:])
    return io.BytesIO(b"".join(kept))


def _read(source: Source, name: str, alpha: bool) -> Image.Image:
    source = _seekable(source, name)
    try:
        return _decode(source, name, alpha)
    except UserInputError:
        raise
    except ValueError:
        lean = _without_texts(source)
        if lean is None:
            raise
        return _decode(lean, name, alpha)


def open_image(source: Source, *, alpha: bool = False) -> Image.Image:
    """Read one image file or stream as 8-bit sRGB, upright.

    Arguments:
        source: A path, or an open binary file.
        alpha: Keep transparency, as RGBA, and do not lay it on white.

    Raises `UserInputError` for what is no such image, is missing or has more than `MAX_PIXELS`
    pixels, and `EnvironmentFailure` for a file that is damaged or cannot be read.
    """
    name = _named(source)
    try:
        return _read(source, name, alpha)
    except UserInputError:
        raise
    except Image.DecompressionBombError:
        raise UserInputError(f"cannot read {name}: it has more than {MAX_PIXELS} pixels") from None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserInputError(
            f"cannot read {name}: {error.strerror}; give an image's path"
        ) from None
    except MemoryError as error:
        raise EnvironmentFailure(
            f"cannot read {name}: it takes more memory than there is, or the file is damaged"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise UserInputError(f"cannot read {short(name)}: its name is too long") from error
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not a decoder's
            raise EnvironmentFailure(f"cannot read {name}: {error.strerror}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EnvironmentFailure(f"cannot read {name}: the file is damaged ({reason})") from error
