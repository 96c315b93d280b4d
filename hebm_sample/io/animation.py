"""Animations: grids one after another as GIF or WebP, which repeat for ever.

A frame is shown for seconds / (number of frames - 1), the last for HOLD seconds, so that the
result can be looked at. WebP is small and near to the pixels; GIF has 256 colours a frame and is
shown everywhere. Pillow is imported when there is something to write: the commands' options read
the endings from here.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hebm_sample.errors import UserInputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "ANIMATED",
    "HOLD",
    "MAX_SECONDS",
    "SECONDS",
    "SIDES",
    "STILLS",
    "check_sides",
    "frame_times",
    "or_list",
    "save_animation",
]

ANIMATED = (".gif", ".webp")
# Of single images. Here, for the commands read the endings without Pillow.
STILLS = (".png", ".jpg", ".jpeg", ".webp", ".gif")
SECONDS, MAX_SECONDS, HOLD = 2.5, 600.0, 1.5
# Browsers show frames that are shorter as if they were five times as long.
_SHORTEST = 20
# Pixels on a side that a format can hold.
SIDES = {".webp": 16_383, ".gif": 65_535, ".jpg": 65_500, ".jpeg": 65_500}


def or_list(words: Sequence[str]) -> str:
    """`.png, .gif or .webp`."""
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def check_sides(path: str | os.PathLike[str], width: int, height: int) -> None:
    """`UserInputError` for an image of more pixels on a side than its file's format can hold."""
    ending = Path(path).suffix.lower()
    most = SIDES.get(ending)
    if most is not None and max(width, height) > most:
        raise UserInputError(
            f"{path} would have {width} x {height} pixels, and {ending} holds at most {most:,} on "
            "a side; write .png, or ask for fewer images or columns"
        )


def frame_times(count: int, seconds: float = SECONDS) -> list[int]:
    """Milliseconds of each of `count` frames, in tens, which are GIF's unit."""
    if not 0 < seconds <= MAX_SECONDS:
        raise UserInputError(
            f"seconds is {seconds}; it must be above 0 and at most {MAX_SECONDS:g}"
        )
    each = max(_SHORTEST, round(100 * seconds / max(count - 1, 1)) * 10)
    return [each] * (count - 1) + [round(1000 * HOLD)]


def save_animation(
    frames: "Sequence[Image]",
    path: str | os.PathLike[str],
    seconds: float = SECONDS,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write `frames`, of one size, atomically.

    Arguments:
        frames: RGB; equal ones in a row may be written as one that is shown longer.
        path: Ends in .gif or .webp.
        seconds: How long it runs before the last frame is held.
        text: Facts, as JSON in GIF's comment or in the description of WebP's EXIF.
    """
    from hebm_sample.io.images import exif_of, note_of, replace_file

    ending = Path(path).suffix.lower()
    if not frames or ending not in ANIMATED:
        raise UserInputError(
            f"{len(frames)} frames go to {str(path)!r}; give at least one, and a path that ends "
            f"in {' or '.join(ANIMATED)}"
        )
    first, *rest = frames
    check_sides(path, first.width, first.height)
    note = note_of(text)
    settings: dict[str, Any]
    if ending == ".gif":
        settings = {"format": "GIF", "comment": note.encode()} if note else {"format": "GIF"}
    else:
        exif = exif_of(first, note)
        settings = {"format": "WEBP", "quality": 90, "method": 4, "exif": exif}
    encoded = io.BytesIO()
    times = frame_times(len(frames), seconds)
    first.save(encoded, save_all=True, append_images=rest, duration=times, loop=0, **settings)
    replace_file(path, encoded.getbuffer())
