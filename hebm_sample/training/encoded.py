"""The encoder's maps of a whole training set and of its mirror images, computed once.

While the energies learn, the encoder is frozen, so what it makes of an image never changes; only
the draw from top to bottom, u ~ q(u | x), must be made afresh. The maps lie in one file of half
precision, mapped into memory:

    row of the file = [maps of the image | maps of its mirror image], channels last

It takes 2 x 2 bytes a number: 140 kB an image of the 64x64 faces.
"""

import json
import math
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hebm_sample.data.dataset import ImageDataset
from hebm_sample.generator.protocol import ImageEncoder

__all__ = ["EncodedImages", "encode_images", "remove_encoded"]

BATCH = 64
FREE = 2**30  # bytes of the disk that are left alone
DATA, KEY = "encoded.bin", "encoded.json"


class EncodedImages:
    """Maps of images by row and mirroring.

    Arguments:
        path: The file.
        shapes: (C, H, W) of each map, by the encoder's keys.
        rows: Images in it.
        device: Where maps are wanted.
    """

    def __init__(
        self,
        path: Path,
        shapes: dict[int, tuple[int, int, int]],
        rows: int,
        device: torch.device,
    ) -> None:
        self.shapes, self.device = shapes, device
        self.sizes = [math.prod(shape) for shape in shapes.values()]
        self.data = np.memmap(path, np.float16, "r", shape=(rows, 2, sum(self.sizes)))

    def __call__(self, rows: Tensor, flips: Tensor | None) -> dict[int, Tensor]:
        """`ImageEncoder.features` of images `rows` (B,), mirrored where `flips` (B,) is true."""
        mirrored = np.zeros(len(rows), np.int64) if flips is None else flips.numpy().astype(int)
        found = torch.from_numpy(self.data[rows.numpy(), mirrored]).to(self.device).float()
        parts = zip(self.shapes.items(), found.split(self.sizes, dim=1), strict=True)
        return {
            side: part.contiguous().view(-1, height, width, channels).permute(0, 3, 1, 2)
            for (side, (channels, height, width)), part in parts
        }


@torch.no_grad()
def encode_images(
    encoder: ImageEncoder,
    images: ImageDataset,
    folder: Path,
    device: torch.device,
    *,
    key: str,
    build: bool = True,
    progress: bool = True,
) -> EncodedImages | None:
    """The maps of all rows, from `folder`, where they are made unless they are there already.

    Arguments:
        key: Of encoder and images: maps of another one are made again.
        build: Make them if need be; a process that does not is called after one that did.
        progress: Show a bar while they are made.

    Returns:
        None where the disk has no room for them.
    """
    shapes = encoder.map_shapes
    numbers = sum(math.prod(shape) for shape in shapes.values())
    data, label, text = folder / DATA, folder / KEY, json.dumps([key, images.identity])
    known = data.is_file() and label.is_file() and label.read_text(encoding="utf-8") == text
    if not known and build:
        label.unlink(missing_ok=True)
        data.unlink(missing_ok=True)
        if shutil.disk_usage(folder).free - 4 * numbers * len(images) < FREE:
            return None
        building = folder / f".{DATA}.{uuid.uuid4().hex}"
        try:
            _write(building, encoder, images, shapes, numbers, device, progress)
            building.replace(data)
            label.write_text(text, encoding="utf-8")
        finally:
            building.unlink(missing_ok=True)
    elif not known:
        return None
    return EncodedImages(data, shapes, len(images), device)


def _write(
    path: Path,
    encoder: ImageEncoder,
    dataset: ImageDataset,
    shapes: dict[int, tuple[int, int, int]],
    numbers: int,
    device: torch.device,
    progress: bool,
) -> None:
    count = len(dataset)
    store: Any = np.memmap(path, np.float16, "w+", shape=(count, 2, numbers))
    starts = range(0, count, BATCH)
    for start in tqdm(starts, desc="encoding", unit="batch", disable=not progress):
        rows = torch.arange(start, min(start + BATCH, count))
        for mirrored in (False, True):
            images = dataset.batch(rows, torch.full((len(rows),), mirrored)).to(device)
            maps = encoder.features(images)
            flat = [maps[side].permute(0, 2, 3, 1).flatten(1) for side in shapes]
            store[start : start + len(rows), int(mirrored)] = torch.cat(flat, 1).cpu().numpy()
    store.flush()


def remove_encoded(folder: Path) -> None:
    """Delete what `encode_images` left in a run that has ended."""
    for name in (KEY, DATA):
        (folder / name).unlink(missing_ok=True)
