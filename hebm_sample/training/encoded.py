"""The encoder's maps of a whole training set and of its mirror images, computed once.

While the energies learn, the encoder is frozen, so what it makes of an image never changes; only
the draw from top to bottom, u ~ q(u | x), must be made afresh. The maps lie in one file of half
precision, mapped into memory:

    row of the file = [maps of the image | maps of its mirror image], channels last

It takes 2 x 2 bytes per number: 140 kB per image of the 64x64 faces. A run that goes on compares
the file with its sha256 first, and makes it again if it differs.

Where the file would be larger than `MOST_BYTES`, each step encodes its images: what no machine
keeps in memory is read from the disk at random places, which is no faster.
"""

import hashlib
import json
import math
import shutil
import sys
import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hebm_sample.data.cache import mapped_bytes
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.generator.protocol import ImageEncoder
from hebm_sample.io.bars import disabled
from hebm_sample.io.files import parse_json, read_regular, sync_file, sync_folder, write_atomically
from hebm_sample.training.devices import by_first

__all__ = [
    "MOST_BYTES",
    "EncodedImages",
    "encode_images",
    "encoded_by_first",
    "encoded_bytes",
    "remove_encoded",
]

BATCH = 64
MOST_BYTES = 64 * 2**30
UNITS = (("GiB", 30), ("MiB", 20), ("KiB", 10), ("bytes", 0))
FREE = 2**30  # bytes of the disk that are left alone
DATA, KEY = "encoded.bin", "encoded.json"
MOST_KEY = 100_000


class EncodedImages:
    """Maps of images by row and mirroring.

    Arguments:
        path: The file.
        shapes: (C, H, W) of each map, by the encoder's keys.
        rows: Images in it.
        device: Where maps are wanted.
        digest: The file's sha256; None trusts a process that has just compared it.

    Raises `ValueError` for a file with other bytes.
    """

    def __init__(
        self,
        path: Path,
        shapes: dict[int, tuple[int, int, int]],
        rows: int,
        device: torch.device,
        digest: str | None = None,
    ) -> None:
        self.shapes, self.device = shapes, device
        self.sizes = [math.prod(shape) for shape in shapes.values()]
        numbers = sum(self.sizes)
        data = mapped_bytes(path, 4 * rows * numbers, digest)
        self.data = data.view(np.float16).reshape(rows, 2, numbers)

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
    batch: int = BATCH,
    progress: bool = True,
) -> EncodedImages | None:
    """The maps of all rows, from `folder`, where they are made unless they are there already.

    Arguments:
        key: Of the encoder and its generator: maps of others are made again.
        build: Make them if need be; a process that does not is called after one that did.
        batch: Images that are encoded at a time.
        progress: Say how large the file is, and show a bar while it is made.

    Returns:
        None where the file would be too large, for the disk or at all, or half precision does not
        hold the maps; of which a warning says what it is.
    """
    label = json.dumps([key, images.identity])
    found = _known(encoder, images, folder, device, label, compare=build)
    if found is not None or not build:
        return found
    remove_encoded(folder)
    reason, size = _too_large(encoder, len(images), folder)
    if not reason:
        if progress:
            where = f"take {size} in {folder} until the run ends"
            tqdm.write(f"the encoder's maps of {len(images)} images {where}", file=sys.stderr)
        try:
            _build(encoder, images, folder, device, label, batch, progress)
            return _known(encoder, images, folder, device, label, compare=False)
        except OverflowError as error:
            reason = str(error)
    warnings.warn(f"{reason}; each step makes them", stacklevel=3)
    return None


def encoded_by_first(
    encoder: ImageEncoder,
    images: ImageDataset,
    folder: Path,
    accelerator: Any,
    *,
    key: str,
    batch: int,
    progress: bool,
) -> EncodedImages | None:
    """`encode_images` where several processes share a run: the first makes the maps, the others
    wait.
    """

    def encoded(build: bool) -> EncodedImages | None:
        options = {"key": key, "build": build, "batch": batch, "progress": progress and build}
        return encode_images(encoder, images, folder, accelerator.device, **options)

    found = by_first(accelerator, lambda: encoded(True))
    return found if accelerator.is_main_process else encoded(False)


def encoded_bytes(encoder: ImageEncoder) -> int:
    """What the file takes for each image and its mirror image."""
    return 4 * sum(math.prod(shape) for shape in encoder.map_shapes.values())


def _too_large(encoder: ImageEncoder, count: int, folder: Path) -> tuple[str, str]:
    """Why the maps of so many images are not written, "" if they can be; and their size in
    words.
    """
    size = encoded_bytes(encoder) * count
    unit, power = next((u, p) for u, p in UNITS if size >= 2**p or not p)
    words = f"{size / 2**power:,.1f} {unit}"
    if size > MOST_BYTES:
        least = f"more than the {MOST_BYTES / 2**30:.3g} GiB that are worth it"
        return f"the encoder's maps of {count} images would take {words}, {least}", words
    if shutil.disk_usage(folder).free - size < FREE:
        return f"{folder} has no room for the encoder's maps of all images, {words}", words
    return "", words


def _known(
    encoder: ImageEncoder,
    images: ImageDataset,
    folder: Path,
    device: torch.device,
    label: str,
    compare: bool,
) -> EncodedImages | None:
    """The maps that are there; None where there are none or others, or, with a warning, where they
    are damaged.
    """
    try:
        text = read_regular(folder / KEY, MOST_KEY)
        stored = parse_json(text) if text else None
        if not isinstance(stored, list) or stored[:1] != [label]:
            return None
        digest = str(stored[1]) if compare else None
        return EncodedImages(folder / DATA, encoder.map_shapes, len(images), device, digest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        warnings.warn(
            f"the encoder's maps in {folder} are damaged and are made again: {reason}",
            stacklevel=4,
        )
        return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _build(
    encoder: ImageEncoder,
    images: ImageDataset,
    folder: Path,
    device: torch.device,
    label: str,
    batch: int,
    progress: bool,
) -> None:
    """Write the maps, and when they are on the disk, what they are of and their sha256."""
    building = folder / f".{DATA}.{uuid.uuid4().hex}"
    try:
        digest = _write(building, encoder, images, device, batch, progress)
        building.replace(folder / DATA)
        sync_folder(folder)
        write_atomically(folder / KEY, json.dumps([label, digest]).encode())
    finally:
        building.unlink(missing_ok=True)


def _write(
    path: Path,
    encoder: ImageEncoder,
    dataset: ImageDataset,
    device: torch.device,
    batch: int,
    progress: bool,
) -> str:
    """Write the maps of all rows; the file's sha256. Raises `OverflowError` for numbers that half
    precision does not hold.
    """
    count, digest = len(dataset), hashlib.sha256()
    starts = range(0, count, batch)
    with path.open("wb") as file:
        for start in tqdm(starts, desc="encoding", unit="batch", disable=disabled(progress)):
            rows = torch.arange(start, min(start + batch, count))
            halves = []
            for mirrored in (False, True):
                images = dataset.batch(rows, torch.full((len(rows),), mirrored)).to(device)
                maps = encoder.features(images)
                flat = [maps[side].permute(0, 2, 3, 1).flatten(1) for side in encoder.map_shapes]
                halves.append(torch.cat(flat, 1).to("cpu", torch.float16))
            both = torch.stack(halves, 1)
            if not bool(torch.isfinite(both).all()):
                raise OverflowError("the encoder's maps have numbers beyond half precision")
            data = both.numpy().tobytes()
            digest.update(data)
            file.write(data)
        sync_file(file)
    return digest.hexdigest()


def remove_encoded(folder: Path) -> None:
    """Delete what `encode_images` left in a run that has ended, or was killed while it wrote."""
    for path in (folder / KEY, folder / DATA, *folder.glob(f".{DATA}.*")):
        _remove(path)
