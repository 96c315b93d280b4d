"""Folders of images: which of them are a split's, and their labels.

Splits are told by folders (`train/`, `Test/`), or by the names of all files (`train_001.png`).
Labels come from a table (`metadata.py`), from CelebA's attributes (`celeba.py`), or from one
folder per class. A folder that is called like a split is one only where no other folder lies
beside it that is none: bus/, car/ and train/ are three classes.

The library `datasets` (5.2) does not serve here: it takes train/ of those three for a split,
follows no links, and loses tables above split folders and classes beside a stray image.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hebm_sample.data import source as rows_source
from hebm_sample.data.celeba import find_attributes, read_attributes
from hebm_sample.data.metadata import METADATA_NAMES, STYLEGAN_NAME, is_stylegan, match_rows
from hebm_sample.data.source import Chunk, Source, stamp
from hebm_sample.data.splits import canonical, split_of_folder
from hebm_sample.data.tree import Tree, with_suffixes
from hebm_sample.errors import UserInputError

__all__ = ["IMAGE_SUFFIXES", "folder_source"]

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)


class _Chosen(NamedTuple):
    """Images of one split, the folder that holds them ("" or "train/"), and how many of which
    others there are.
    """

    images: list[str]
    base: str
    left_out: dict[str, int]


def folder_source(tree: Tree, split: str | None) -> Source:
    """Images as files; labels from a table, CelebA's attributes, or the folders' names.

    Raises `UserInputError` where there are none, or where more than one split could be meant.
    """
    images = with_suffixes(tree.names, IMAGE_SUFFIXES)
    if not images:
        raise UserInputError(
            f"no images in {tree.root}: it has no files in {', '.join(IMAGE_SUFFIXES)} or .parquet"
        )
    chosen = _choose(tree.root, images, split)
    tables = _tables(tree, chosen.base)
    attributes = find_attributes(tree.root, tree.names)
    notes: list[str] = []
    label_names: dict[str, tuple[str, ...]] = {}
    rows: dict[str, dict[str, Any]] = {}
    read: list[Path] = tables
    if tables:
        rows, notes = _labelled(tree.root, tables, images, chosen.images)
    elif attributes is not None and (found := _attributes(tree.root, attributes, chosen.images)):
        (rows, label_names), read = found, [attributes]
    else:
        rows = _class_folders(chosen.images)
    left_out = chosen.left_out | _others(tree, images, read)
    return _source(tree.root, chosen, rows, label_names, read, (left_out, tuple(notes)))


def _source(
    root: Path,
    chosen: _Chosen,
    rows: dict[str, dict[str, Any]],
    label_names: dict[str, tuple[str, ...]],
    read: list[Path],
    said: tuple[dict[str, int], tuple[str, ...]],
) -> Source:
    columns = list(dict.fromkeys(c for name in chosen.images for c in rows.get(name, ())))

    def chunks() -> Iterator[Chunk]:
        size = rows_source.CHUNK_ROWS
        for i in range(0, len(chosen.images), size):
            some = chosen.images[i : i + size]
            labels = {c: [rows.get(name, {}).get(c) for name in some] for c in columns}
            names = [name.removeprefix(chosen.base) for name in some]
            yield Chunk(0, [root / name for name in some], labels, names)

    # A table can lie beside the folder.
    key = [stamp(p, p.parent) for p in read] + [stamp(root / name, root) for name in chosen.images]
    return Source(key, len(chosen.images), label_names, chunks, *said)


def _others(tree: Tree, images: list[str], read: list[Path]) -> dict[str, int]:
    """Files that are neither images nor tables that are read, by suffix; runs' folders."""
    known = {*images, *(p.relative_to(tree.root).as_posix() for p in read if _is_below(p, tree))}
    rest = Counter(
        os.path.splitext(name)[1].lower() or "without a suffix"
        for name in tree.names
        if name not in known
    )
    found = dict(sorted(rest.items(), key=lambda item: (-item[1], item[0])))
    runs = "folder of a run" if len(tree.runs) == 1 else "folders of runs"
    found |= {"written by an export or a report": len(tree.written)} if tree.written else {}
    return found | ({runs: len(tree.runs)} if tree.runs else {})


def _is_below(path: Path, tree: Tree) -> bool:
    return path.is_relative_to(tree.root)


# Splits


def _choose(root: Path, images: list[str], split: str | None) -> _Chosen:
    """The images of a split; by default train's, or all where nothing says a split."""
    base = _common_folder(images) if split is None or _has_no(images, split) else ""
    tops: dict[str, list[str]] = {}
    for name in images:
        top, slash, _ = name.removeprefix(base).partition("/")
        tops.setdefault(top if slash else "", []).append(name)
    if split is None:
        name = _default_folder(root, tops)
    else:
        name = _asked_folder(tops, split)
    if name is None:
        return _by_file_name(root, images, split)
    left = {_called(top): len(some) for top, some in tops.items() if top != name}
    return _Chosen(tops[name], f"{base}{name}/" if name else base, left)


def _common_folder(images: list[str]) -> str:
    """The folder, "" or "a/b/", that holds all images and does not bear a split's name."""
    base = ""
    for part in images[0].split("/")[:-1]:
        longer = f"{base}{part}/"
        if split_of_folder(part) or not all(name.startswith(longer) for name in images):
            break
        base = longer
    return base


def _has_no(images: list[str], split: str) -> bool:
    return not any(name.startswith(f"{split}/") for name in images)


def _called(top: str) -> str:
    return f"of {top}/" if top else "beside the split's folder"


def _default_folder(root: Path, tops: dict[str, list[str]]) -> str | None:
    """Name of the folder to train on, "" for what lies in none, None where none is a split's."""
    told = {top: split for top in tops if (split := split_of_folder(top))}
    others = [top for top in tops if top and top not in told]
    kinds = set(told.values())
    if not told or (len(kinds) == 1 and others and _are_classes(tops)):
        return None
    names = ", ".join(f"{top}/" for top in sorted(told))
    if (len(kinds) == 1 and others) or len(kinds) < len(told):
        more = ", ".join(f"{top}/" for top in sorted(others))
        raise UserInputError(
            f"{root} holds {names}{' beside ' + more if more else ''}: which of them to train on "
            "is anybody's guess; give the folder of one"
        )
    if "train" in kinds:
        return next(top for top, split in told.items() if split == "train")
    if "" in tops:  # images with a folder of test images beside them
        return ""
    if len(told) > 1:
        raise UserInputError(
            f"{root} holds {names} and no train/; give the folder of one as the data"
        )
    return next(iter(told))


def _are_classes(tops: dict[str, list[str]]) -> bool:
    """Whether all folders hold images alone."""
    depth = {len(name.split("/")) for top, some in tops.items() if top for name in some}
    return len(depth) == 1


def _asked_folder(tops: dict[str, list[str]], split: str) -> str | None:
    found = [top for top in tops if top and canonical(top) == canonical(split)]
    if split in found:
        return split
    if len(found) > 1:
        raise UserInputError(f"the split {split!r} could be {' or '.join(sorted(found))}")
    return found[0] if found else None


def _by_file_name(root: Path, images: list[str], split: str | None) -> _Chosen:
    """Images by the first word of their names, where that is a split's in all, and several are
    told; else all of them.
    """
    found: dict[str, list[str]] = {}
    for name in images:
        word = re.match(r"[a-z]*", name.rsplit("/", 1)[-1].casefold())
        found.setdefault(split_of_folder(word.group() if word else "") or "", []).append(name)
    told = len(found) > 1 and "" not in found
    wanted = canonical(split or "train")
    if told and wanted in found:
        left = {f"of split {k}": len(v) for k, v in found.items() if k != wanted}
        return _Chosen(found[wanted], "", left)
    if split is not None:
        raise UserInputError(f"{root} has no folder {split!r} for that split")
    if told:
        raise UserInputError(
            f"{root} holds files of the splits {' and '.join(sorted(found))} and none of train; "
            "put those to train on into a folder of their own"
        )
    return _Chosen(images, "", {})


# Labels


def _tables(tree: Tree, base: str) -> list[Path]:
    """Tables in the folder of the split, in those above it and in those below it."""

    def applies(name: str) -> bool:
        folder = name[: name.rfind("/") + 1]
        return folder.startswith(base) or base.startswith(folder)

    names = [name for name in tree.names if applies(name)]
    found = [tree.root / n for n in names if n.rsplit("/", 1)[-1] in METADATA_NAMES]
    stylegan = [tree.root / n for n in names if n.rsplit("/", 1)[-1] == STYLEGAN_NAME]
    return found or [table for table in stylegan if is_stylegan(table)]


def _labelled(
    root: Path, tables: list[Path], images: list[str], chosen: list[str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(labels by image, what to say of rows that name none)."""
    rows, missed = match_rows(tables, root, images)
    if not rows.keys() & set(chosen) and any(total for _, total in missed.values()):
        raise UserInputError(f"{tables[0]} names none of the {len(chosen)} images in its folder")
    return rows, [
        f"{count} of {total} rows of {name} name no image"
        for name, (count, total) in missed.items()
        if count
    ]


def _attributes(
    root: Path, path: Path, images: list[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, ...]]] | None:
    """Attributes of CelebA or CelebA-HQ; None if the table lies beside the folder and is of other
    images.
    """
    table = read_attributes(path)
    columns = table.columns([Path(name) for name in images])
    if not any(Path(name).stem in table.rows for name in images):
        if not path.is_relative_to(root):
            return None
        raise UserInputError(f"{path} names none of the {len(images)} images in {root}")
    rows = {
        name: {column: values[i] for column, values in columns.items()}
        for i, name in enumerate(images)
    }
    return rows, {name: ("no", "yes") for name in table.names}


def _class_folders(images: list[str]) -> dict[str, dict[str, Any]]:
    """`label` from an image's folder, where several folders hold images alone; images beside the
    folders have none.
    """
    base = os.path.commonpath([os.path.dirname(name) for name in images])
    inner = {name: os.path.relpath(name, base or ".").split(os.sep) for name in images}
    classes = {parts[0] for parts in inner.values() if len(parts) == 2}
    if len(classes) < 2 or any(len(parts) > 2 for parts in inner.values()):
        return {}
    return {name: {"label": parts[0]} for name, parts in inner.items() if len(parts) == 2}
