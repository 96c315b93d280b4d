"""`torch.save` files of strangers, read without running anything in them.

Such a file is a zip archive with a pickle `data.pkl` in it, or, before torch 1.6, a bare pickle.
It is read with `weights_only=True` and one class allowed: nothing in it is run.
"""

import argparse
import errno
import math
import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hebm_sample.errors import EnvironmentFailure, HebmError, UserInputError, short

__all__ = ["SUPPORTED", "check_file", "named", "unpickle", "within_memory"]

NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
OLDEST_TORCH = (2, 10)  # earlier ones' weights_only has known holes
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # what each kind begins with
SUPPORTED = (
    "supported are files of torch.save with tensors, numbers, text and an argparse.Namespace"
)


def _check_torch() -> None:
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise EnvironmentFailure(
            f"torch is {torch.__version__}; reading a foreign checkpoint safely needs {needed} or "
            "newer: pip install --upgrade torch"
        )


def named(key: object) -> str:
    """A stranger's key as a text."""
    return key if isinstance(key, str) else short(key)


def _archive_fault(path: Path, size: int) -> str | None:
    """What is wrong with a zip archive; its checksums are compared, which torch does not do."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = [record.filename for record in records]
            if not any(name.endswith("/data.pkl") for name in names):
                return f"is a zip archive of {short(names)}, without torch.save's data.pkl"
            # Never unpacked: a megabyte could become a thousand.
            odd = [r.filename for r in records if r.compress_type != zipfile.ZIP_STORED]
            if odd:
                return f"has compressed records ({short(odd)}), which torch.save does not write"
            damaged = next((r.filename for r in records if not _intact(archive, r)), None)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.EIO:
            raise
        return (
            f"is truncated: the end of its zip archive is missing after {size} bytes; get it again"
        )
    if damaged is not None:
        return f"is damaged: {short(damaged)} in it differs from its checksum; get it again"
    return None


def _intact(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    """Whether a record, read in pieces, has the checksum that the archive gives."""
    try:
        with archive.open(record) as file:
            while file.read(2**20):
                pass
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _fault(path: Path) -> str | None:
    """What a file is in place of one of `torch.save`, as far as its outside tells."""
    head = _head(path)
    if not head:
        return "is empty"
    if head.startswith(PICKLE):
        return None
    if not head.startswith(ZIP):
        return f"is no file of torch.save: it starts with {short(head)}"
    return _archive_fault(path, path.stat().st_size)


def check_file(path: Path) -> None:
    """Before it is read: `UserInputError` unless there is a regular file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserInputError(f"the name {short(str(path))} is too long for a file") from error
        if error.errno not in NOTHING_THERE:
            raise EnvironmentFailure(f"{path} cannot be read: {error.strerror}") from error
        raise UserInputError(f"there is no file {path}; {SUPPORTED}") from error
    except ValueError as error:  # a NUL in its name
        raise UserInputError(f"there is no file {short(str(path))}; {SUPPORTED}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise UserInputError(f"{path} is {kind}; {SUPPORTED}")


def _check_outside(path: Path) -> None:
    check_file(path)
    try:
        fault = _fault(path)
    except OSError as error:
        raise EnvironmentFailure(f"{path} cannot be read: {error.strerror}") from error
    if fault is not None:
        raise UserInputError(f"{path} {fault}; {SUPPORTED}")


def _lacks_memory(error: Exception, size: float) -> bool:
    """Whether torch had too little memory for tensors of at most `size` bytes: a file that asks
    for more than it has is damaged.
    """
    asked = re.search(r"memory.*allocate (\d+) bytes|mmap (\d+) bytes.*memory", str(error))
    if asked is None:
        return isinstance(error, MemoryError)
    return int(asked[1] or asked[2]) <= size


@contextmanager
def within_memory(path: Path) -> Iterator[None]:
    """Too little memory for what is made of a file becomes one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error, math.inf):
            raise
        raise _too_large(path) from error


def _too_large(path: Path) -> EnvironmentFailure:
    return EnvironmentFailure(
        f"there is too little memory for {path}, which has {path.stat().st_size / 2**20:.0f} MiB; "
        "end other programs, or take a machine with more"
    )


def unpickle(path: Path) -> Any:
    """What a `torch.save` file holds, if it is tensors, numbers, text and namespaces; nothing in
    it is run. Tensors of an archive stay on the disk until they are looked at, so that those of
    an optimiser take no memory.

    Raises:
        UserInputError: There is no such file, it is truncated, damaged or of another kind, or it
            holds what could run code.
        EnvironmentFailure: torch is too old to read it safely, the disk fails, or there is too
            little memory.
    """
    _check_torch()
    _check_outside(path)
    try:
        size, mapped = path.stat().st_size, _head(path).startswith(ZIP)
    except OSError as error:
        raise EnvironmentFailure(f"{path} cannot be read: {error.strerror}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: errors are told below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = (
            f"holds {name[1][:100]}, which could run code" if name else "is another kind of pickle"
        )
        raise UserInputError(f"{path} {held}; {SUPPORTED}") from error
    except Exception as error:  # whatever a broken file leads torch's reader to
        raise _unread(path, size, error) from error


def _unread(path: Path, size: int, error: Exception) -> HebmError:
    """Why torch's reader failed, in one line."""
    if _lacks_memory(error, size):
        return _too_large(path)
    reason = short(str(error).partition("\n")[0] or type(error).__name__)[1:-1]
    return UserInputError(f"{path} is damaged, or another kind of pickle ({reason}); {SUPPORTED}")
