"""Bytes on disk: read with a cap, hashed, parsed strictly, written so that none is seen half."""

import contextlib
import hashlib
import json
import os
import re
import stat
import uuid
from pathlib import Path
from typing import IO, Any

from hebm_sample.errors import EnvironmentFailure, WeightsError, short

__all__ = [
    "MAX_FILE_BYTES",
    "cache_home",
    "is_run_folder",
    "mark_run_folder",
    "means_place",
    "measured",
    "parse_json",
    "printable",
    "read_capped",
    "read_regular",
    "sha256_of",
    "short",
    "sync_file",
    "sync_folder",
    "write_atomically",
]

MAX_FILE_BYTES = 2**31
RUN_MARKER = ".hebm-run"


def printable(text: str) -> str:
    """A text that may come from anywhere, fit for a line of a terminal: `?` for what does not
    print.
    """
    return "".join(c if c.isprintable() else "?" for c in text)


def read_regular(path: Path, limit: int) -> bytes | None:
    """At most `limit` bytes of a regular file, through one descriptor; None if it is no such file.

    Raises `OSError` where it is missing or unreadable.
    """
    # What a pipe or a device of that name gives never ends; opening one can wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    if not stat.S_ISREG(os.stat(path).st_mode):
        return None
    with open(os.open(path, flags), "rb") as file:
        return file.read(limit) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None


def read_capped(path: Path, limit: int) -> bytes:
    """The whole of a regular file.

    Raises:
        WeightsError: It is missing, unreadable, no regular file, or has more than `limit` bytes.
    """
    try:
        data = read_regular(path, limit + 1)
    except FileNotFoundError as error:
        raise WeightsError(f"there is no {path}; the model is incomplete") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    if data is None:
        raise WeightsError(f"{path} is no regular file; put the model's own file there")
    if len(data) > limit:
        raise WeightsError(f"{path} has more than {limit} bytes, the most that is read")
    return data


def measured(path: str | os.PathLike[str], limit: int = MAX_FILE_BYTES) -> tuple[int, str]:
    """(number, sha256 in lower-case hexadecimal) of the first `limit` bytes of a file, in one
    pass.
    """
    digest, left = hashlib.sha256(), limit
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return limit - left, digest.hexdigest()


def sha256_of(path: str | os.PathLike[str], limit: int = MAX_FILE_BYTES) -> str:
    """The sha256 of the first `limit` bytes of a file, in lower-case hexadecimal."""
    return measured(path, limit)[1]


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
                sync_file(file)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise EnvironmentFailure(f"cannot write {path}: {error.strerror or error}") from error
    sync_folder(path.parent)


def sync_file(file: IO[bytes]) -> None:
    """Bring what was written to an open file onto the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as a rename is only then."""
    # Windows cannot open a folder, and needs not.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def means_place(text: str) -> bool:
    """Whether a text that could be a Hub's owner/name is meant for a place here, even if there is
    none: it begins as paths do, or its first part is a folder.
    """
    first, *rest = re.split(r"[/\\]" if os.name == "nt" else "/", text)
    begins = text.startswith((".", "~")) or os.path.isabs(text)
    return begins or (bool(rest) and os.path.isdir(first))


def cache_home(folder: Path | None = None) -> Path:
    """Where what can be made again is kept: `folder`, or $HEBM_CACHE, or ~/.cache/hebm_sample.

    Raises:
        EnvironmentFailure: There is no home folder.
    """
    try:
        chosen = folder or os.environ.get("HEBM_CACHE")
        return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "hebm_sample"
    except RuntimeError as error:
        raise EnvironmentFailure(
            "there is no home folder to keep decoded images in; set HEBM_CACHE to a folder"
        ) from error


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
