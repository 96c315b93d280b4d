"""Encoded images to squares of bytes, a few at a time."""

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hebm_sample.data.source import Chunk, Source
from hebm_sample.errors import HebmError
from hebm_sample.io.images import open_image

__all__ = ["DecodedChunk", "decode_square", "decode_squares", "decoded_chunks"]

DECODING_THREADS = 2


class DecodedChunk(NamedTuple):
    """A chunk whose images are decoded.

    Arguments:
        chunk: As the source gave it.
        before: Rows of the source before it.
        results: (3, S, S) uint8 of each row, or the reason why it cannot be read.
    """

    chunk: Chunk
    before: int
    results: list[np.ndarray | str]


def decoded_chunks(source: Source, size: int) -> Iterator[DecodedChunk]:
    """All rows of a source, one chunk in memory at once."""
    before = 0
    decode = partial(decode_square, size=size)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for chunk in source.chunks():
            results = list(pool.map(decode, chunk.images))
            yield DecodedChunk(chunk, before, results)
            before += len(results)


def decode_squares(encoded: Iterable[bytes | Path | None], size: int) -> list[np.ndarray | str]:
    """`decode_square` of each."""
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        return list(pool.map(partial(decode_square, size=size), encoded))


def decode_square(encoded: bytes | Path | None, size: int) -> np.ndarray | str:
    """The middle square of one encoded image, uint8 (3, size, size), or the reason why it cannot
    be read.
    """
    if encoded is None:
        return "empty"
    try:
        image = open_image(encoded if isinstance(encoded, Path) else io.BytesIO(encoded))
    except HebmError as error:
        return str(error)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    if side != size:
        square = square.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.ascontiguousarray(np.transpose(np.asarray(square), (2, 0, 1)))
