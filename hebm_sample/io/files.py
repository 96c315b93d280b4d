"""Bytes on disk: read with a cap, hashed, parsed strictly, written so that none is seen half."""

import contextlib
import hashlib
import json
import os
import stat
import uuid
from pathlib import Path
from typing import Any

from hebm_sample.errors import EnvironmentFailure, WeightsError

__all__ = [
    "MAX_FILE_BYTES",
    "is_run_folder",
    "mark_run_folder",
    "parse_json",
    "read_capped",
    "sha256_of",
    "short",
    "write_atomically",
]

MAX_FILE_BYTES = 2**31
RUN_MARKER = ".hebm-run"


def short(value: object) -> str:
    """A stranger's value for an error message: one line of ASCII, at most 120 characters."""
    try:
        shown = ascii(value)
    except RecursionError:
        shown = f"a nested {type(value).__name__}"
    return shown if len(shown) <= 120 else shown[:117] + "..."


def read_capped(path: Path, limit: int) -> bytes:
    """The whole of a regular file.

    Raises:
        WeightsError: It is missing, unreadable, no regular file, or has more than `limit` bytes.
    """
    try:
        # A pipe or a device of that name would never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise WeightsError(f"{path} is no regular file; put the model's own file there")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise WeightsError(f"there is no {path}; the model is incomplete") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise WeightsError(f"{path} has more than {limit} bytes, the most that is read")
    return data


def sha256_of(path: str | os.PathLike[str], limit: int = MAX_FILE_BYTES) -> str:
    """The sha256 of the first `limit` bytes of a file, in lower-case hexadecimal."""
    digest, left = hashlib.sha256(), limit
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def parse_json(data: bytes) -> Any:
    """JSON from UTF-8 bytes; `ValueError` on repeated keys, NaN, Infinity, bottomless nesting."""
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {short(key)} appears twice")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file by these bytes: whoever looks, even after a crash, finds the old or the new.

    Raises:
        EnvironmentFailure: No right to write, or the disk is full; the old file is kept.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        # Mode 0666 less the umask, which the ready-made temporary files (0600) do not honour.
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
        )
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise EnvironmentFailure(f"cannot write {path}: {error.strerror or error}") from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # The rename itself is durable only once the folder is; Windows cannot open one, and needs not.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def mark_run_folder(folder: Path) -> None:
    """Mark a folder as a run's: what lies in it is never taken for data."""
    marker = folder / RUN_MARKER
    if not marker.exists():
        write_atomically(marker, b"A training run of hebm_sample wrote this folder.\n")


def is_run_folder(folder: Path) -> bool:
    """Whether a run wrote this folder: it is marked, or has a run's log and checkpoints."""
    if (folder / RUN_MARKER).is_file():
        return True
    # Runs of releases that set no mark.
    return (folder / "log.jsonl").is_file() and any(folder.glob("checkpoint-*/state.json"))
