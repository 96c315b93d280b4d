"""Encoded images in an LMDB, as LSUN publishes them: keys that say nothing, values in WebP.

Rows are in the order of the keys. Keys of LSUN are hashes, so that the last rows are of no other
kind than the rest.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hebm_sample.data.splits import canonical
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.io.files import read_regular

__all__ = ["DATA_FILE", "LOCK_FILE", "count_values", "find_lmdb", "iterate_items"]

DATA_FILE, LOCK_FILE = "data.mdb", "lock.mdb"
_MAGIC = bytes.fromhex("beefc0de")


def find_lmdb(root: Path, names: Sequence[str], split: str | None) -> tuple[Path, int] | None:
    """(the LMDB in a folder, how many others there are): the folder itself, or one right below it,
    as LSUN names them, `church_outdoor_train_lmdb`.

    Arguments:
        names: Of the files below `root`.

    None if there is none; `UserInputError` if several could be meant.
    """
    if DATA_FILE in names:
        return root, 0
    inner = [name for name in names if name.count("/") == 1 and name.endswith(f"/{DATA_FILE}")]
    found = sorted((root / name).parent for name in inner if _is_lmdb(root / name))
    if not found:
        return None
    wanted = [p for p in found if _split(p) == canonical(split or "train")]
    wanted = wanted or (found if split is None else [])
    if len(wanted) != 1:
        raise UserInputError(
            f"{root} holds the LMDBs {', '.join(p.name for p in found)}; give the folder of one"
        )
    return wanted[0], len(found) - 1


def _is_lmdb(path: Path) -> bool:
    """Whether a file begins as an LMDB does: other data bases have that name, too."""
    try:
        head = read_regular(path, 24)
    except OSError:
        return False
    return head is not None and head[16:20] in (_MAGIC, _MAGIC[::-1])


def _split(folder: Path) -> str:
    """The split of `church_outdoor_train_lmdb`; "" of a folder with another name."""
    words = folder.name.split("_")
    return canonical(words[-2]) if len(words) > 2 and words[-1] == "lmdb" else ""


def _open(lmdb: ModuleType, folder: Path) -> Any:
    """Read only and without its lock file, so that a read-only disk will do."""
    try:
        return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, max_readers=1)
    except (lmdb.Error, OSError) as error:
        raise EnvironmentFailure(f"{folder} is not a readable LMDB: {error}") from error


def count_values(lmdb: ModuleType, folder: Path) -> int:
    """Values in the LMDB; `EnvironmentFailure` if its file is shorter than it says.

    Arguments:
        lmdb: The library, of the [train] extra.
    """
    with _open(lmdb, folder) as environment:
        stat = environment.stat()
        whole = (environment.info()["last_pgno"] + 1) * stat["psize"]
        size = (folder / DATA_FILE).stat().st_size
        if size < whole:  # it is mapped into memory: reading on would kill the process
            raise EnvironmentFailure(
                f"{folder / DATA_FILE} is cut short: it has {size:,} of {whole:,} bytes; "
                "copy or unpack it again"
            )
        return stat["entries"]


def iterate_items(lmdb: ModuleType, folder: Path) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values, one pair in memory; `EnvironmentFailure` where it is damaged."""
    with _open(lmdb, folder) as environment:
        try:
            with environment.begin() as transaction:
                yield from transaction.cursor().iternext(keys=True, values=True)
        except lmdb.Error as error:
            raise EnvironmentFailure(f"{folder} is damaged: {error}") from error
