"""Decoded images with their labels: bytes that are mapped into memory, and views of them.

x = byte / 127.5 - 1                              in [-1, 1]
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hebm_sample.data.holdout import SelectedRows, held_out_rows, random_rows, row_keys, selected
from hebm_sample.data.labels import renumbered
from hebm_sample.errors import UserInputError

__all__ = ["UNREADABLE", "ImageDataset", "to_float", "zoomed"]

UNREADABLE = "that cannot be read"  # of `left_out`


def to_float(images: Tensor) -> Tensor:
    """Bytes (B, C, H, W) to float32 in [-1, 1], channels last: x / 127.5 - 1."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1.0)


def zoomed(images: Tensor, squares: Tensor) -> Tensor:
    """Squares of images (B, C, S, S) in [-1, 1], enlarged to S by bilinear interpolation and
    rounded to the levels of bytes.

    Arguments:
        squares: (B, 3): side as a share of the image's, in (0, 1]; left and top edge as shares
            of the room that is left, in [0, 1].
    """
    side, left, top = squares.to(images.device, images.dtype).unbind(1)
    zero = torch.zeros_like(side)
    rows = [side, zero, (2 * left - 1) * (1 - side), zero, side, (2 * top - 1) * (1 - side)]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), False)
    sampled = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    rounded = sampled.add_(1).mul_(127.5).round_().div_(127.5).sub_(1)
    return rounded.contiguous(memory_format=torch.channels_last)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True)
class ImageDataset:
    """Decoded images with their labels; slices of it are views.

    Arguments:
        images: (N, 3, S, S) uint8, memory-mapped.
        labels: Integer columns (N,), -1 where unknown.
        label_names: Names of the values 0, 1, ... of a column, where they are known.
        part_starts: Row at which each source file begins, in sorted order of the files.
        identity: Hash of the decoded images and labels; with a slice, of its rows' range too.
        skipped: Images of the source that could not be read.
        keys: (N,) uint64, of each row's identity (`holdout.row_keys`); None: of its number.
        left_out: What of the source is not here, and how many of it, `skipped` included.
        notes: What else a user should know of the source.
        taken: What the source's other splits say of these rows in their `left_out`.
        by_name: Whether rows are in the order of their files' names, which can say what they show.
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]
    label_names: dict[str, tuple[str, ...]]
    part_starts: tuple[int, ...]
    identity: str
    skipped: int = 0
    keys: np.ndarray | None = None
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])
    notes: tuple[str, ...] = ()
    taken: Mapping[str, int] = field(default_factory=dict[str, int])
    by_name: bool = False

    def __len__(self) -> int:
        """Rows."""
        return len(self.images)

    def rows(self, start: int, stop: int) -> "ImageDataset":
        """Rows start ... stop - 1 as views; `part_starts` counts from `start`."""
        starts = sorted({max(0, s - start) for s in self.part_starts if s < stop})
        return dataclasses.replace(
            self,
            images=self.images[start:stop],
            labels={k: v[start:stop] for k, v in self.labels.items()},
            part_starts=tuple(starts),
            identity=f"{self.identity}[{start}:{stop}]",
            keys=None if self.keys is None else self.keys[start:stop],
        )

    def select(self, rows: np.ndarray) -> "ImageDataset":
        """Rows `rows` (M,), in that order; their images are read when they are asked for."""
        part = np.searchsorted(self.part_starts, rows, side="right")
        starts = [0, *(np.flatnonzero(np.diff(part)) + 1)] if len(rows) else [0]
        return dataclasses.replace(
            self,
            images=selected(self.images, rows),
            labels={k: v[rows] for k, v in self.labels.items()},
            part_starts=tuple(int(s) for s in starts),
            identity=f"{self.identity}[{hashlib.sha256(rows.tobytes()).hexdigest()[:16]}]",
            keys=None if self.keys is None else self.keys[rows],
        )

    def some(self, count: int) -> "ImageDataset":
        """`count` rows, or all, any part of which stands for the whole: the first ones; of rows
        that were chosen by their names, that lie in the order of these or are sorted by a label,
        random ones, in a random order that is always the same.
        """
        if isinstance(self.images, SelectedRows) or self.by_name or self._is_sorted():
            return self.select(random_rows(len(self), count))
        return self.rows(0, min(count, len(self)))

    def _is_sorted(self) -> bool:
        """Whether a label changes from row to row less than half as often as in a random order."""
        for column in self.labels.values():
            known = column[column >= 0]
            shares = np.unique(known, return_counts=True)[1] / max(1, len(known))
            chance = 1 - float((shares**2).sum())
            if len(shares) > 1 and (np.diff(known) != 0).sum() < chance * (len(known) - 1) / 2:
                return True
        return False

    def split(self, validation: int | None = None) -> "tuple[ImageDataset, ImageDataset]":
        """(train, validation): the last `validation` rows are kept apart; None for rows that are
        chosen by a hash of their identity (`holdout.py`).

        Raises `UserInputError` unless at least one row is left to train on.
        """
        if validation is None:
            keys = row_keys(map(str, range(len(self)))) if self.keys is None else self.keys
            held = held_out_rows(keys, self.labels)
            return self.select(np.flatnonzero(~held)), self.select(np.flatnonzero(held))
        if not len(self):
            raise UserInputError("there are no images")
        if not 0 <= validation < len(self):
            raise UserInputError(
                f"{validation} images are to be held out; of {len(self)} images it can be 0 to "
                f"{len(self) - 1}"
            )
        cut = len(self) - validation
        return self.rows(0, cut), self.rows(cut, len(self))

    def numbered_as(self, other: "ImageDataset") -> "ImageDataset":
        """The same rows, whose labels' numbers mean what they mean in `other`, such as those of
        the split `test` as in `train`. Values that it does not have are unknown, and noted.

        Raises `UserInputError` where a column has names here and numbers there.
        """
        labels, names, notes = dict(self.labels), dict(self.label_names), list(self.notes)
        for column in sorted(self.labels.keys() & other.labels.keys()):
            own, wanted = self.label_names.get(column), other.label_names.get(column)
            if wanted is None and not (other.labels[column] >= 0).any():
                continue
            labels[column], lacking = renumbered(column, self.labels[column], own, wanted)
            if wanted is not None:
                names[column] = wanted
            if lacking:
                notes.append(f"{column}: no training image has {', '.join(lacking[:8])}")
        identity = self.identity
        if any(not np.array_equal(labels[k], self.labels[k]) for k in labels):
            packed = b"".join(v.tobytes() for _, v in sorted(labels.items()))
            identity += f"[labels:{hashlib.sha256(packed).hexdigest()[:16]}]"
        return dataclasses.replace(
            self, labels=labels, label_names=names, identity=identity, notes=tuple(notes)
        )

    def batch(
        self, indices: Tensor, flip: Tensor | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Rows `indices` (B,) as `to_float` (B, 3, S, S), mirrored where `flip` (B,) is true."""
        rows = _tensor(np.asarray(self.images[indices.numpy()]))
        if flip is not None:
            rows = torch.where(flip[:, None, None, None], rows.flip(-1), rows)
        return to_float(rows if device is None else rows.to(device))

    def label_rows(self, indices: Tensor, columns: tuple[str, ...]) -> Tensor:
        """Labels of rows `indices`, (B, columns), -1 where unknown."""
        rows = indices.numpy()
        return _tensor(np.stack([self.labels[c][rows] for c in columns], axis=1))
