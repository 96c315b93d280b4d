"""Images among the data that a command of this package made, as their files say.

They are read like all others, since somebody put them there or compares them; that they are there
is said, because a model that learns from samples learns their faults.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from hebm_sample.io.images import read_text

__all__ = ["count_made", "made_note"]

SIGN, NEAR = b"hebm_sample ", 2**13  # bytes at both ends, where formats hold their texts


def count_made(images: Iterable[bytes | Path | None]) -> int:
    """How many of these are files that `hebm-sample`, `hebm-edit` or `Samples.save` wrote."""
    return sum(_is_made(image) for image in images if isinstance(image, Path))


def _is_made(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            ends = file.read(NEAR)
            if SIGN not in ends:
                file.seek(-min(NEAR, file.seek(0, os.SEEK_END)), os.SEEK_END)
                ends = file.read()
    except OSError:
        return False
    return SIGN in ends and read_text(path).get("version", "").startswith(SIGN.decode())


def made_note(count: int) -> list[str]:
    """What the line of the data says of them."""
    were = "was" if count == 1 else "were"
    return [f"{count:,} of the images {were} made by hebm_sample"] if count else []
