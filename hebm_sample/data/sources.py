"""Where images come from: folders, parquet files, LMDBs and Hub data sets, as a stream of encoded
rows.

Files are taken in sorted order, so that a row's number means the same image on every machine.
Nothing is decoded here: a `Chunk` holds encoded bytes or a path, and the labels as they were
found. Names follow the conventions of Hugging Face data sets. Two data sets are also read as their
authors publish them: LSUN's LMDBs (`lmdb.py`) and the attributes of CelebA and CelebA-HQ
(`celeba.py`).
"""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from hebm_sample.data import source as rows_source
from hebm_sample.data.folders import ARCHIVES, IMAGE_SUFFIXES, folder_source, left_out_of
from hebm_sample.data.hub_set import hub_source
from hebm_sample.data.lmdb import DATA_FILE, LOCK_FILE, count_values, find_lmdb, iterate_items
from hebm_sample.data.parquet import parquet_source
from hebm_sample.data.source import Chunk, Source, stamps
from hebm_sample.data.tree import walk, with_suffixes
from hebm_sample.errors import UserInputError
from hebm_sample.io.extras import import_extra
from hebm_sample.io.files import means_place

__all__ = ["Chunk", "Source", "open_source"]


def open_source(source: str | Path, split: str | None) -> Source:
    """Find the files of `source`.

    Raises `UserInputError` if there are none, `HubError` or `EnvironmentFailure` if reading fails.
    """
    if not str(source):
        raise UserInputError("the data's place is empty; give a folder of images")
    path = Path(os.path.expanduser(source))
    _refuse_pickles(path)
    if path.is_dir():
        return _folder(path, split)
    if path.is_file():
        if path.name == DATA_FILE:
            return _lmdb_source(path.parent, path.parent)
        if path.suffix.lower() in ARCHIVES:
            raise UserInputError(f"{path} is an archive; unpack it and give the folder")
        if path.suffix.lower() != ".parquet":
            raise UserInputError(
                f"{path} is not a parquet file; give a .parquet file or a folder of images"
            )
        return parquet_source([path.name], path.parent, split)
    named = re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and ".." not in str(source)
    if named and isinstance(source, str) and not means_place(source):
        return hub_source(source, split)
    raise UserInputError(
        f"no images at {source}: give a folder of images, a parquet file, a folder of parquet "
        "files, a folder with an LMDB, or a Hub data set as owner/name"
    )


def _folder(path: Path, split: str | None) -> Source:
    """What a folder holds: an LMDB, parquet files, or images; the others of these are counted."""
    tree = walk(path)
    parquet = with_suffixes(tree.names, (".parquet",))
    images = with_suffixes(tree.names, IMAGE_SUFFIXES)
    if (lmdb := find_lmdb(path, tree.names, split)) is not None:
        folder, others = lmdb
        reason = "LMDB that is another" if others == 1 else "LMDBs that are others"
        beside = {reason: others, "images beside the LMDB": len(images)}
        own = [name for name in tree.names if name.rsplit("/", 1)[-1] in (DATA_FILE, LOCK_FILE)]
        beside = {reason: count for reason, count in beside.items() if count}
        left_out = beside | left_out_of(tree, [*own, *images])
        taken = {reason: 1} if others else {}
        return _lmdb_source(folder, path)._replace(left_out=left_out, taken=taken)
    if parquet:
        left_out = left_out_of(tree, [*parquet, *images])
        return parquet_source(parquet, path, split, images, left_out)
    return folder_source(tree, split)


def _refuse_pickles(path: Path) -> None:
    """CIFAR-10's and CIFAR-100's archives for Python hold pickles, and those can run code."""
    batches = [path / "data_batch_1", path / "cifar-10-batches-py/data_batch_1"]
    if re.match(r"cifar-100?-python(\.|$)", path.name) or any(b.is_file() for b in batches):
        raise UserInputError(
            f"{path} holds Python pickles, which can run code when they are opened and are never "
            "read here; take the parquet files of the Hub instead: --data uoft-cs/cifar10"
        )


# LMDBs


def _lmdb_source(folder: Path, root: Path) -> Source:
    lmdb = import_extra("lmdb", "train")
    total = count_values(lmdb, folder)

    def chunks() -> Iterator[Chunk]:
        items = iterate_items(lmdb, folder)
        while some := list(islice(items, rows_source.CHUNK_ROWS)):
            yield Chunk(0, [value for _, value in some], {}, [key.hex() for key, _ in some])

    return Source(stamps([folder / DATA_FILE], root), total, {}, chunks, {})
