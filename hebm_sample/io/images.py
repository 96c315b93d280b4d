"""Images in and out; with `decode.py`, the only image IO of the package.

Inside the package an image is a float tensor with x in [-1, 1], outside it is 8-bit RGB:

    byte = round((x + 1) * 255 / 2)            x = byte * 2 / 255 - 1

Reading is the business of `decode.py`. Writing: through a temporary file and a rename, so that a
reader, a full disk or Ctrl-C never meets half an image.
"""

import contextlib
import errno
import io
import json
import math
import os
import secrets
import stat
import warnings
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.io.animation import STILLS, check_sides, or_list
from hebm_sample.io.decode import (
    MAX_PIXELS,
    WHITE,
    Source,
    open_image,
    to_rgb,
    upright,
    with_alpha,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MAX_PIXELS",
    "ImageLike",
    "as_image",
    "check_folder",
    "check_writable",
    "enlarged",
    "exif_of",
    "grid",
    "grid_size",
    "grey_mask",
    "listed",
    "note_of",
    "open_image",
    "png_bytes",
    "prepare",
    "prepare_masks",
    "read_text",
    "replace_file",
    "save_image",
    "save_png",
    "to_pil",
    "to_rgb",
    "to_square_tensor",
    "to_uint8",
    "upright",
    "with_alpha",
    "writable_text",
]

ImageLike: TypeAlias = Image.Image | Source

_GUTTER = 2
_EXIF_DESCRIPTION = 0x010E
MAX_JPEG_EXIF = 60_000


# Float images and bytes


def to_uint8(images: "Tensor") -> npt.NDArray[np.uint8]:
    """Bytes (B, H, W, 3) of float images (B, 3, H, W) in [-1, 1]; values outside are clamped.

    Grey images (B, 1, H, W) are repeated to three channels. Raises `UserInputError` for another
    shape or for values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserInputError(f"images have shape {tuple(images.shape)}; they must be (B, 3, H, W)")
    x = images.detach().float().cpu().numpy()
    if not np.isfinite(x).all():
        raise UserInputError("images hold values that are not finite, so they have no bytes")
    x = np.rint((x.clip(-1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)  # (B, C, H, W)
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(x, (len(x), 3, *x.shape[2:])), 1, -1))


def to_pil(images: "Tensor") -> list[Image.Image]:
    """One RGB image per row of float images (B, 3, H, W) in [-1, 1]."""
    return [Image.fromarray(x) for x in to_uint8(images)]


def to_square_tensor(image: Image.Image, size: int) -> "Tensor":
    """The image's central square at `size` pixels per side: float (3, size, size) in [-1, 1].

    Reduced by Lanczos, as the training images are: the encoder sees what it has learned on.
    """
    import torch

    image = to_rgb(upright(image))
    side = min(image.size)
    if side < 1:
        raise UserInputError(
            f"the image has {image.width} x {image.height} pixels; give one that has some"
        )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))  # pyright: ignore
    return (pixels.permute(2, 0, 1) / 127.5 - 1.0).contiguous()


def as_image(image: object) -> Image.Image:
    """A PIL image, or what a path or an open file holds, upright."""
    if isinstance(image, Image.Image):
        return upright(image)
    if isinstance(image, (str, os.PathLike)) or hasattr(image, "read"):
        return open_image(cast("Source", image))
    raise UserInputError(
        f"an image is of type {type(image).__name__}; give PIL images or their paths"
    )


def listed(images: Any) -> list[Any]:
    """One image, or a sequence of them, as a list."""
    several = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
    return list(cast("Sequence[Any]", images)) if several else [images]


def prepare(images: ImageLike | Sequence[ImageLike], size: int) -> "Tensor":
    """Images, cropped to the centre, as one float tensor (B, 3, size, size) in [-1, 1].

    Arguments:
        images: PIL images, paths or open binary files; one of them or a list.
        size: Side in pixels.
    """
    import torch

    sources = listed(images)
    if not sources:
        raise UserInputError("images is empty; give at least one image")
    return torch.stack([to_square_tensor(as_image(x), size) for x in sources])


def prepare_masks(
    masks: "ImageLike | Sequence[ImageLike] | npt.NDArray[np.bool_] | Tensor",
    images: "ImageLike | Sequence[ImageLike] | npt.NDArray[Any] | Tensor",
    size: int,
    count: int,
) -> "Tensor":
    """Masks of `count` images, true where they are white: bool (B, 1, size, size).

    Arguments:
        masks: PIL images or paths, or booleans (B, H, W) of torch or NumPy, of their image's own
            size or `size` x `size`. One of them goes for all images.
        images: The images, as for `prepare`; arrays and tensors are of `size`.
        size: Side in pixels; masks are cropped to the centre as images are.
        count: B.

    Raises `UserInputError` for another size or number.
    """
    import torch

    ready = _booleans(masks, size) if isinstance(masks, (torch.Tensor, np.ndarray)) else None
    if ready is None or ready.shape[2:] != (size, size):
        given = listed(masks) if ready is None else [m[0] for m in ready.cpu().numpy()]
        sizes = [(size, size)] * count
        if not isinstance(images, (torch.Tensor, np.ndarray)):
            sizes = [_size(x, size) for x in listed(images)]
        if len(given) == 1:
            given = given * count
        ready = torch.stack(
            [_mask(m, s, size) for m, s in zip(given, sizes, strict=False)]
            or [torch.zeros(1, size, size, dtype=torch.bool, device="cpu")]
        )
        ready = ready if len(given) == count else ready[:0]
    if len(ready) not in (1, count):
        raise UserInputError(
            f"another number of masks than of images ({count}) was given; "
            "give one for all, or one per image"
        )
    return ready.expand(count, -1, -1, -1)


def _booleans(masks: "Tensor | npt.NDArray[Any]", size: int) -> "Tensor":
    """Masks (N, 1, H, W) of booleans (H, W), (N, H, W) or (N, 1, H, W)."""
    import torch

    is_array = isinstance(masks, np.ndarray) and masks.dtype == np.bool_
    found: Any = torch.from_numpy(masks) if is_array else masks  # pyright: ignore
    given: Any = found if found.ndim > 2 else found[None]
    ready: Any = given if given.ndim == 4 else given[:, None]
    if ready.dtype != torch.bool or ready.ndim != 4 or ready.shape[1] != 1:
        raise UserInputError(
            f"masks are {masks.dtype} {tuple(masks.shape)}; they must be booleans "
            f"(N, {size}, {size}), or of the image's own size"
        )
    return ready.cpu()


def _size(image: Any, size: int) -> tuple[int, int]:
    return (size, size) if hasattr(image, "shape") else as_image(image).size


def grey_mask(source: Any) -> Image.Image:
    """One mask of booleans (H, W), or an image."""
    if isinstance(source, Image.Image) or not hasattr(source, "shape"):
        return to_rgb(as_image(source)).convert("L")
    values = np.asarray(source)
    if values.dtype != np.bool_ or values.ndim != 2:
        raise UserInputError(
            f"a mask is {values.dtype} {values.shape}; give booleans (height, width), true where "
            "to fill in, or an image"
        )
    return Image.fromarray(values.astype(np.uint8) * 255)


def _mask(source: object, image: tuple[int, int], size: int) -> "Tensor":
    """One mask, bool (1, size, size)."""
    import torch

    mask = grey_mask(source)
    if mask.size not in (image, (size, size)):
        raise UserInputError(
            f"the mask has {mask.width} x {mask.height} pixels; the image has "
            f"{image[0]} x {image[1]}: give a mask of that size, or {size} x {size}"
        )
    side = min(mask.size)
    left, top = (mask.width - side) // 2, (mask.height - side) // 2
    square = mask.crop((left, top, left + side, top + side))
    # A pixel is known or not, and one that is masked in part is not.
    masked = Image.fromarray((np.array(square) >= 128).astype(np.float32))
    covered = masked.resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.array(covered) > 1e-6)[None]  # pyright: ignore


# Grids


def _columns(count: int, columns: int | None) -> int:
    if count < 1:
        raise UserInputError("a grid needs at least one image")
    if columns is not None and columns < 1:
        raise UserInputError(f"columns is {columns}; a grid needs at least one")
    near_square = math.ceil(math.sqrt(count))
    return min(count, near_square if columns is None else columns)


def grid_size(count: int, width: int, height: int, columns: int | None = None) -> tuple[int, int]:
    """(width, height) in pixels of the grid of `count` images of `width` x `height` pixels."""
    across = _columns(count, columns)
    down = math.ceil(count / across)
    return across * (width + _GUTTER) - _GUTTER, down * (height + _GUTTER) - _GUTTER


def grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Images of one size row by row with a white gutter; near-square without `columns`. RGB, or
    RGBA where one of them is.
    """
    across = _columns(len(images), columns)
    sizes = sorted({x.size for x in images})
    if len(sizes) > 1:
        raise UserInputError(f"the images have different sizes {sizes}; a grid needs one size")
    width, height = sizes[0]
    clear = any(image.mode == "RGBA" for image in images)
    mode, convert = ("RGBA", with_alpha) if clear else ("RGB", to_rgb)
    canvas = Image.new(mode, grid_size(len(images), width, height, columns), WHITE)
    for i, image in enumerate(images):
        row, column = divmod(i, across)
        canvas.paste(convert(image), (column * (width + _GUTTER), row * (height + _GUTTER)))
    return canvas


# Writing


def _write_failure(path: Path, error: OSError) -> EnvironmentFailure:
    reason = error.strerror or str(error) or type(error).__name__
    return EnvironmentFailure(
        f"cannot write {path}: {reason}; choose another place or free this one"
    )


def _check_target(path: Path) -> Path:
    """`path` with links followed, if a file may have that name or already has it."""
    try:
        target = Path(os.path.realpath(path))
        mode = target.stat().st_mode
    except FileNotFoundError:
        target = Path(os.path.realpath(path))
        folder = _nearest_folder(target.parent)
        if not folder.is_dir():
            raise UserInputError(f"cannot write {path}: {folder} is not a folder") from None
        return target
    except (NotADirectoryError, ValueError) as error:
        raise UserInputError(f"cannot write {path}: it is not a possible path ({error})") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserInputError("cannot write the image: its file name is too long") from None
        raise _write_failure(path, error) from error
    if stat.S_ISDIR(mode):
        raise UserInputError(f"cannot write {path}: it is a folder; give a file name")
    if not stat.S_ISREG(mode):
        # A rename would replace /dev/null itself.
        raise UserInputError(f"cannot write {path}: it is not a regular file; give a file name")
    return target


def _nearest_folder(folder: Path) -> Path:
    """The folder itself or, where it has still to be made, what there is of its path."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


@contextlib.contextmanager
def _temporary(folder: Path) -> Generator[tuple[Path, IO[bytes]], None, None]:
    """A new file in `folder`, removed on the way out unless it was renamed."""
    # open() rather than tempfile: the mode then follows the umask instead of being 0600.
    name = folder / f".hebm-{secrets.token_hex(8)}.tmp"
    try:
        with name.open("xb") as file:
            yield name, file
    finally:
        name.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise now what `save_image(..., path)` would raise later: before sampling, not after it."""
    target = _check_target(Path(path))
    try:
        with _temporary(_nearest_folder(target.parent)):
            pass
    except OSError as error:
        raise _write_failure(Path(path), error) from error


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise unless files can be written to the folder `path`, which need not exist yet."""
    folder = _nearest_folder(Path(os.path.abspath(path)))
    if not folder.is_dir():
        raise UserInputError(f"cannot write to the folder {path}: {folder} is not a folder")
    try:
        with _temporary(folder):
            pass
    except OSError as error:
        raise EnvironmentFailure(
            f"cannot write to the folder {path}: {error.strerror or error}; choose another one"
        ) from error


def png_bytes(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """The image as a PNG, with `text` in its text chunks."""
    info = PngImagePlugin.PngInfo()
    for key, value in writable_text(text).items():
        info.add_text(key, value)
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", pnginfo=info)
    return encoded.getvalue()


def save_png(
    image: Image.Image, path: str | os.PathLike[str], text: Mapping[str, str] | None = None
) -> None:
    """Write a PNG atomically, with `text` in its text chunks; failures as of `replace_file`."""
    replace_file(path, png_bytes(image, text))


def save_image(
    image: Image.Image, path: str | os.PathLike[str], text: Mapping[str, str] | None = None
) -> None:
    """Write a still atomically in the format that its ending names; failures as of
    `replace_file`.

    Arguments:
        image: RGB or RGBA. PNG and WebP keep its pixels, JPEG nearly, GIF has 256 colours; the
            last two have no alpha, so it is laid on white, with a warning.
        path: Ends in one of `STILLS`.
        text: Facts: a PNG's text chunks; in the other formats one note in JSON (`note_of`).
    """
    ending = Path(path).suffix.lower()
    if ending not in STILLS:
        raise UserInputError(f"an image goes to {str(path)!r}; end it in {or_list(STILLS)}")
    if ending == ".png":
        save_png(image, path, text)
        return
    if image.mode == "RGBA" and ending != ".webp":
        image = to_rgb(image)
        warnings.warn(
            f"{path} keeps no transparency, which is laid on white; .png and .webp keep it",
            stacklevel=2,
        )
    check_sides(path, image.width, image.height)
    settings = _settings(image, ending, note_of(text))
    if text and not settings.get("exif", True):
        warnings.warn(
            f"{path} does not say how it was made, for that is more text than a JPEG holds; .png "
            "and .webp hold it",
            stacklevel=2,
        )
    encoded = io.BytesIO()
    image.save(encoded, **settings)
    replace_file(path, encoded.getbuffer())


def _settings(image: Image.Image, ending: str, note: str) -> dict[str, Any]:
    """How Pillow is to encode a still."""
    if ending == ".gif":
        return {"format": "GIF", "comment": note.encode()} if note else {"format": "GIF"}
    exif = exif_of(image, note)
    if ending == ".webp":
        return {"format": "WEBP", "lossless": True, "exact": True, "exif": exif}
    # A JPEG's segment holds no more. The image is worth more than its note.
    exif = exif if len(exif) < MAX_JPEG_EXIF else b""
    return {"format": "JPEG", "quality": 95, "subsampling": 0, "exif": exif}


def note_of(text: Mapping[str, str] | None) -> str:
    """Facts in JSON, for formats that hold one text only; empty without any."""
    return json.dumps(writable_text(text)) if text else ""


def writable_text(text: Mapping[str, str] | None) -> dict[str, str]:
    """Facts as files hold them: bytes of a name that are no UTF-8, and that Python keeps in it as
    surrogates, are question marks.
    """
    return {key: value.encode(errors="replace").decode() for key, value in (text or {}).items()}


def exif_of(image: Image.Image, note: str) -> bytes:
    """EXIF whose description is `note`."""
    exif = image.getexif()
    if note:
        exif[_EXIF_DESCRIPTION] = note
    return exif.tobytes()


def read_text(path: "Source") -> dict[str, str]:
    """The facts that `save_image` or `save_animation` wrote into a file; empty for a file that is
    missing, no image or without them.
    """
    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP", "GIF"]) as image:
            note: Any = image.info.get("comment") or image.getexif().get(_EXIF_DESCRIPTION)
            found: Any = image.info if image.format == "PNG" else json.loads(note or "{}")
    except Exception:  # whatever a decoder raises: a file that is not ours
        return {}
    if not isinstance(found, dict):
        return {}
    pairs = cast("dict[object, object]", found).items()
    return {k: v for k, v in pairs if isinstance(k, str) and isinstance(v, str)}


def enlarged(image: Image.Image, scale: int) -> Image.Image:
    """Each pixel as a square of `scale` x `scale`: small images to look at."""
    size = (image.width * scale, image.height * scale)
    return image if scale == 1 else image.resize(size, Image.Resampling.NEAREST)


def replace_file(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write a file whole or not at all; its mode follows the umask. Missing folders are made.

    Raises `UserInputError` if `path` is no place for a file, and `EnvironmentFailure` if the
    system refuses (permission, full disk, read-only disk).
    """
    target = _check_target(Path(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(target.parent) as (name, file):
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            file.close()  # Windows renames only closed files
            os.replace(name, target)
    except OSError as error:
        raise _write_failure(Path(path), error) from error
