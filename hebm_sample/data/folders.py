"""Folders of images and their labels: from tables (`metadata.py`), from CelebA's attributes
(`celeba.py`), or from one folder per class. Which images are a split's says `folder_splits.py`.

The library `datasets` (5.2) does not serve here: it takes train/ of bus/, car/ and train/ for a
split, follows no links, and loses tables above split folders and classes beside a stray image.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hebm_sample.data import source as rows_source
from hebm_sample.data.celeba import CELEBA_NAMES, find_attributes, read_attributes
from hebm_sample.data.class_folders import class_labels
from hebm_sample.data.folder_splits import Chosen, choose_split
from hebm_sample.data.metadata import METADATA_NAMES, STYLEGAN_NAME, is_stylegan, match_rows
from hebm_sample.data.source import Chunk, Source, stamps
from hebm_sample.data.tree import Tree, with_suffixes
from hebm_sample.errors import UserInputError

__all__ = ["ARCHIVES", "IMAGE_SUFFIXES", "folder_source", "left_out_of"]

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".001")
# Columns that describe each image in its own words, and are no classes.
CAPTIONS = frozenset(("caption", "captions", "description", "prompt", "text"))
IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)


class _Labels(NamedTuple):
    """Labels by image, names of their values, the files that they come from, what to say."""

    rows: dict[str, dict[str, Any]]
    names: dict[str, tuple[str, ...]]
    read: list[Path]
    notes: list[str]


def folder_source(tree: Tree, split: str | None) -> Source:
    """Images as files; labels from a table, CelebA's attributes, or the folders' names.

    Raises `UserInputError` where there are none, or where more than one split could be meant.
    """
    images = with_suffixes(tree.names, IMAGE_SUFFIXES)
    if not images:
        raise UserInputError(_nothing(tree))
    _check_tables(tree)
    chosen = choose_split(tree.root, images, split)
    tables = _tables(tree, chosen.base)
    if tables:
        labels = _from_tables(tree.root, tables, images, chosen)
    elif (table := find_attributes(tree.root, tree.names)) is not None:
        labels = _from_attributes(tree, table, chosen.images)
    else:
        labels = _from_folders(chosen.images)
    left_out = chosen.left_out | left_out_of(tree, images, labels.read)
    return _source(tree.root, chosen, labels, left_out)


def _nothing(tree: Tree) -> str:
    """What to say of a folder without images."""
    archives = with_suffixes(tree.names, ARCHIVES)
    if archives:
        shown = ", ".join(archives[:3]) + (", ..." if len(archives) > 3 else "")
        return f"no images in {tree.root}, but archives ({shown}); unpack them and give the folder"
    return f"no images in {tree.root}: it has no files in {', '.join(IMAGE_SUFFIXES)} or .parquet"


def _source(root: Path, chosen: Chosen, labels: _Labels, left_out: dict[str, int]) -> Source:
    rows = labels.rows
    columns = list(dict.fromkeys(c for name in chosen.images for c in rows.get(name, ())))

    def chunks() -> Iterator[Chunk]:
        size = rows_source.CHUNK_ROWS
        for i in range(0, len(chosen.images), size):
            some = chosen.images[i : i + size]
            cells = {c: [rows.get(name, {}).get(c) for name in some] for c in columns}
            names = [name.removeprefix(chosen.base) for name in some]
            yield Chunk(0, [root / name for name in some], cells, names)

    # A table can lie beside the folder.
    key = stamps([*labels.read, *(root / name for name in chosen.images)], root)
    notes, taken = tuple(labels.notes), chosen.taken
    return Source(key, len(chosen.images), labels.names, chunks, left_out, notes, taken, True)


def left_out_of(tree: Tree, images: Iterable[str], read: Iterable[Path] = ()) -> dict[str, int]:
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
    found |= {runs: len(tree.runs)} if tree.runs else {}
    links = (
        "linked folder that is read" if len(tree.repeated) == 1 else "linked folders that are read"
    )
    found |= {f"{links} already": len(tree.repeated)} if tree.repeated else {}
    return found | (
        {"that are no files, or links to nothing": len(tree.lost)} if tree.lost else {}
    )


def _is_below(path: Path, tree: Tree) -> bool:
    return path.is_relative_to(tree.root)


# Labels


def _check_tables(tree: Tree) -> None:
    """`UserInputError` for a table of labels that is a link to nothing, or no file."""
    for name in tree.lost:
        if name.rsplit("/", 1)[-1] in (*METADATA_NAMES, STYLEGAN_NAME, *CELEBA_NAMES):
            raise UserInputError(
                f"{tree.root / name} cannot be read: it is a link to nothing, or no file; "
                "mend or remove it"
            )


def _tables(tree: Tree, base: str) -> list[Path]:
    """Tables in the folder of the split, in those above it and in those below it."""

    def applies(name: str) -> bool:
        folder = name[: name.rfind("/") + 1]
        return folder.startswith(base) or base.startswith(folder)

    names = [name for name in tree.names if applies(name)]
    found = [tree.root / n for n in names if n.rsplit("/", 1)[-1] in METADATA_NAMES]
    stylegan = [tree.root / n for n in names if n.rsplit("/", 1)[-1] == STYLEGAN_NAME]
    return found or [table for table in stylegan if is_stylegan(table)]


def _from_tables(root: Path, tables: list[Path], images: list[str], chosen: Chosen) -> _Labels:
    """Labels of tables, and of class folders where those leave some images without."""
    rows, missed = match_rows(tables, root, images)
    if not rows.keys() & set(chosen.images) and any(total for _, total in missed.values()):
        raise UserInputError(
            f"{tables[0]} names none of the {len(chosen.images)} images in its folder"
        )
    notes = [
        f"{count} of {total} rows of {name} name no image"
        for name, (count, total) in missed.items()
        if count
    ]
    csv_or_jsonl = [n for n in missed if n.rsplit("/", 1)[-1] in METADATA_NAMES]
    notes += [f"{name} has no rows" for name in csv_or_jsonl if not missed[name][1]]
    classes, _ = class_labels(chosen.images)
    if classes and not any("label" in row for row in rows.values()):
        if all(set(rows.get(name, ())) - CAPTIONS for name in chosen.images):
            notes.append("the folders' names are no labels, since a table has some")
        else:
            rows = {n: {**rows.get(n, {}), "label": classes.get(n)} for n in chosen.images}
    return _Labels(rows, {}, tables, notes)


def _from_attributes(tree: Tree, path: Path, images: list[str]) -> _Labels:
    """Attributes of CelebA or CelebA-HQ in a table; the folders' names if it lies beside the data
    and could be of other images.
    """
    beside, table = not path.is_relative_to(tree.root), read_attributes(path)
    named = sum(Path(name).stem in table.rows for name in images)
    if beside and not _is_theirs(tree.root, path, named, images):
        return _from_folders(images, (f"{path.name} beside the folder is not read",))
    if not named:
        raise UserInputError(f"{path} names none of the {len(images)} images in {tree.root}")
    columns = table.columns([Path(name) for name in images])
    rows = {
        name: {column: values[i] for column, values in columns.items()}
        for i, name in enumerate(images)
    }
    notes = [f"attributes of {path.name} beside the folder"] if beside else []
    return _Labels(rows, {name: ("no", "yes") for name in table.names}, [path], notes)


def _is_theirs(root: Path, table: Path, named: int, images: list[str]) -> bool:
    """Whether a table beside a folder is of its images: numbers such as 000001.jpg are in many."""
    if 2 * named < len(images) or class_labels(images)[0]:
        return False
    here = root.resolve()
    folders = [p.name.casefold() for p in table.parent.iterdir() if p.is_dir() and p != here]
    return "celeba" in here.name.casefold() or not any("celeba" in name for name in folders)


def _from_folders(images: list[str], more: tuple[str, ...] = ()) -> _Labels:
    rows, notes = class_labels(images)
    return _Labels({n: {"label": label} for n, label in rows.items()}, {}, [], [*notes, *more])
