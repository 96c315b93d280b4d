"""Training images as files of limited size, for a machine that the data set cannot reach.

    pack    data -> OUT/pack.json, train-64-000.safetensors, ..., heldout-64-000.safetensors
    unpack  OUT -> one uint8 tensor (N, 3, S, S) on the device, labels, held-out images

Each size that a recipe of the preset trains at has pieces of its own: what `hebm-train` would read
at that size. Training rows are all there, in their order; of the held-out rows only those that a
run measures on, its first ones. A piece is complete by itself: encoded images end to end, their
lengths, and the labels of the preset's symbols.
"""

import io
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from hebm_sample.data.dataset import ImageDataset, load_images
from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.io.files import parse_json, read_capped, sha256_of, write_atomically
from hebm_sample.presets.preset import Preset
from hebm_sample.training.label_columns import label_columns, with_values
from hebm_sample.training.recipe import stages

__all__ = ["MANIFEST", "Packed", "pack", "read_manifest", "unpack"]

MANIFEST = "pack.json"
FORMAT_VERSION = 1
TRIAL = 200  # images that the size of all is estimated from
MEBIBYTE = 2**20
ROOM = 4096  # bytes of a piece that are not images: safetensors' header


@dataclass(frozen=True)
class Packed:
    """One size of a packed data set, decoded.

    Arguments:
        images: (N, 3, S, S) uint8, on the device.
        labels: (N, symbols) int64, -1 where unknown, on the device; None without symbols.
        held_out: Some rows that are not trained on, on the CPU.
        identity: Of the training rows, as `hebm-train` knows them.
    """

    images: Tensor
    labels: Tensor | None
    held_out: ImageDataset
    identity: str


def pack(
    source: str,
    preset: Preset,
    out: Path,
    *,
    piece: float = 50.0,
    kind: str | None = None,
    quality: int = 95,
    limits: dict[int, int] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the images of every size that the preset's recipe trains at; returns the manifest.

    Arguments:
        source: As for `load_images`.
        piece: MiB of a file at most.
        kind: "png", which loses nothing; "jpeg", without chroma subsampling; or "webp", half as
            large, with it. None takes PNG where all images of a size then fit one piece, or else
            JPEG.
        quality: Of JPEG and WebP.
        limits: Of a size, at most so many training rows, evenly spread.

    Raises:
        UserInputError: `out` holds other files, or the data lack a label column.
    """
    if out.exists() and any(out.iterdir()):
        raise UserInputError(f"{out} is not empty; give --out a folder of its own")
    out.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, Any] = {}
    for size, owner, validation, heldout in _sizes(preset):
        images = load_images(source, size=size, progress=progress)
        training, held_out = images.split(validation)
        columns = label_columns(owner, training)
        training, held_out = (with_values(owner, each, columns) for each in (training, held_out))
        few = _spread(training, (limits or {}).get(size))
        how = (kind or _kind(few, piece), quality)
        rows = {"train": few, "heldout": held_out.rows(0, min(heldout, len(held_out)))}
        parts = [
            _write(out, f"{part}-{size}", chosen, columns, how, piece)
            for part, chosen in rows.items()
        ]
        sizes[str(size)] = {
            "kind": how[0] if how[0] == "png" else f"{how[0]} {quality}",
            "columns": list(columns),
            "identity": few.identity,
            "data": training.identity,
            "rows": len(training),
            "rule": _rule(validation),
            "files": [row for part in parts for row in part],
        }
    manifest = {"format_version": FORMAT_VERSION, "preset": preset.name, "sizes": sizes}
    write_atomically(out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def _rule(validation: int | None) -> str:
    """Which rows are held out, as `TrainingRecord` says it."""
    return "hash" if validation is None else f"last:{validation}" if validation else "none"


def _sizes(preset: Preset) -> Iterator[tuple[int, Preset, int | None, int]]:
    """(side, preset of that side, rows held out, rows of those to pack) of a recipe."""
    known: dict[int, list[Any]] = {}
    for stage in stages(preset, Path()):
        known.setdefault(stage.size, []).append(stage)
    for size, found in known.items():
        rules = {stage.settings.validation for stage in found}
        if len(rules) > 1:
            raise UserInputError(
                f"preset {preset.name} holds out other rows at {size}x{size} in each of its runs; "
                "they must agree"
            )
        yield size, found[0].preset, rules.pop(), max(stage.settings.heldout for stage in found)


def _spread(images: ImageDataset, limit: int | None) -> ImageDataset:
    """At most `limit` rows, evenly spread, in their order."""
    if limit is None or limit >= len(images):
        return images
    return images.select(np.linspace(0, len(images) - 1, limit).round().astype(np.int64))


def _kind(images: ImageDataset, piece: float) -> str:
    trial = range(0, len(images), max(1, len(images) // TRIAL))
    some = sum(len(_encoded(np.asarray(images.images[i]), "png", 0)) for i in trial)
    fits = some / len(trial) * len(images) < 0.95 * piece * MEBIBYTE
    return "png" if fits else "jpeg"


def _encoded(image: np.ndarray, kind: str, quality: int) -> bytes:
    """(3, S, S) uint8 as a file's bytes."""
    options: dict[str, dict[str, Any]] = {
        "png": {"optimize": True},
        "jpeg": {"quality": quality, "subsampling": 0, "optimize": True},
        "webp": {"quality": quality, "method": 4},
    }
    found, file = Image.fromarray(image.transpose(1, 2, 0)), io.BytesIO()
    found.save(file, kind.upper(), **options[kind])
    return file.getvalue()


def _write(
    out: Path,
    name: str,
    images: ImageDataset,
    columns: tuple[str, ...],
    how: tuple[str, int],
    piece: float,
) -> Iterator[dict[str, Any]]:
    """Write pieces, one at a time in memory; yields their rows of the manifest."""
    most, rows, total = piece * MEBIBYTE - ROOM, [], 0
    start = number = 0
    each = 8 * (1 + len(columns))  # bytes of an image's length and labels
    with ThreadPoolExecutor() as pool:
        every = range(len(images))
        encoded = pool.map(lambda i: _encoded(np.asarray(images.images[i]), *how), every)
        for data in encoded:
            if rows and total + len(data) + each > most:
                yield _write_piece(out, name, number, images, start, rows, columns)
                start, number, rows, total = start + len(rows), number + 1, [], 0
            rows.append(data)
            total += len(data) + each
    if rows:
        yield _write_piece(out, name, number, images, start, rows, columns)


def _write_piece(
    out: Path,
    name: str,
    number: int,
    images: ImageDataset,
    start: int,
    rows: list[bytes],
    columns: tuple[str, ...],
) -> dict[str, Any]:
    """One file of consecutive rows; returns its row of the manifest."""
    labels = (
        images.label_rows(torch.arange(start, start + len(rows)), columns) if columns else None
    )
    tensors = {
        "bytes": torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8),
        "lengths": torch.tensor([len(r) for r in rows]),
        "labels": torch.zeros(len(rows), 0, dtype=torch.long) if labels is None else labels,
    }
    path = out / f"{name}-{number:03}.safetensors"
    write_atomically(path, safetensors.torch.save(tensors))
    return {
        "file": path.name,
        "images": len(rows),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
    }


def read_manifest(folder: Path, preset: Preset) -> dict[str, Any]:
    """The manifest of a packed data set, all of whose pieces are there and whole.

    Raises:
        UserInputError: There is none, or it was packed for another preset.
        WeightsError: A piece is missing or damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserInputError(f"{folder} has no {MANIFEST}; make it with pack --out {folder}")
    manifest = parse_json(path.read_bytes())
    wanted = {str(size) for size, *_ in _sizes(preset)}
    if manifest.get("format_version") != FORMAT_VERSION or not wanted <= set(manifest["sizes"]):
        raise UserInputError(
            f"{folder} was packed for preset {manifest.get('preset')}, with images of "
            f"{', '.join(manifest['sizes'])}; {preset.name} needs {', '.join(sorted(wanted))}"
        )
    for size in sorted(wanted):
        for row in manifest["sizes"][size]["files"]:
            file = folder / row["file"]
            if not file.is_file() or sha256_of(file) != row["sha256"]:
                state = "damaged" if file.is_file() else "missing"
                raise WeightsError(f"{file} is {state}; copy it again")
    return manifest


def unpack(folder: Path, manifest: dict[str, Any], size: int, device: torch.device) -> Packed:
    """Decode one size: training images onto the device, held-out ones to the CPU."""
    about = manifest["sizes"][str(size)]
    parts = {
        part: [row for row in about["files"] if row["file"].startswith(f"{part}-")]
        for part in ("train", "heldout")
    }
    width, cpu = len(about["columns"]), torch.device("cpu")
    images, labels = _decoded(folder, parts["train"], size, width, device)
    held, held_labels = _decoded(folder, parts["heldout"], size, width, cpu)
    columns = dict(zip(about["columns"], held_labels.T.numpy(), strict=True))
    return Packed(
        images,
        labels.to(device) if about["columns"] else None,
        ImageDataset(held.numpy(), columns, {}, (0,), f"{about['identity']} held out"),
        about["identity"],
    )


def _decoded(
    folder: Path, rows: list[dict[str, Any]], size: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Images (N, 3, S, S) on the device, filled piece by piece, and labels (N, columns)."""
    total, done = sum(row["images"] for row in rows), 0
    images = torch.empty(total, 3, size, size, dtype=torch.uint8, device=device)
    labels = []
    for row in rows:
        data = read_capped(folder / row["file"], row["bytes"])
        piece = safetensors.torch.load(data)
        with ThreadPoolExecutor() as pool:
            found = np.stack(list(pool.map(_pixels, _cut(piece["bytes"], piece["lengths"]))))
        images[done : done + len(found)] = torch.from_numpy(found).to(device)
        labels.append(piece["labels"])
        done += len(found)
    return images, torch.cat(labels) if labels else torch.zeros(0, width, dtype=torch.long)


def _cut(data: Tensor, lengths: Tensor) -> Iterable[bytes]:
    return [part.numpy().tobytes() for part in data.split(lengths.tolist())]


def _pixels(data: bytes) -> np.ndarray:
    """An encoded image as (3, S, S) uint8."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        return np.asarray(image).transpose(2, 0, 1)
