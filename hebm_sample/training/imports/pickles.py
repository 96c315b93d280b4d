"""`torch.save` files of strangers, read without running anything in them.

Such a file is a zip archive with a pickle `data.pkl` in it, or, before torch 1.6, a bare pickle.
It is read with `weights_only=True` and one class allowed: nothing in it is run.
"""

import argparse
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.io.files import short

__all__ = ["SUPPORTED", "unpickle"]

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


def _fault(path: Path) -> str | None:
    """What a file is in place of one of `torch.save`, as far as its outside tells."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        return "is empty"
    if head.startswith(PICKLE):
        return None
    if not head.startswith(ZIP):
        return f"is no file of torch.save: it starts with {short(head)}"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return (
            f"is truncated: the end of its zip archive is missing after {size} bytes; get it again"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        return f"is a zip archive of {short(names)}, without torch.save's data.pkl"
    return None


def _check_outside(path: Path) -> None:
    if not path.is_file():
        raise UserInputError(
            f"{path} is a folder; {SUPPORTED}"
            if path.is_dir()
            else f"there is no file {path}; {SUPPORTED}"
        )
    try:
        fault = _fault(path)
    except OSError as error:
        raise EnvironmentFailure(f"{path} cannot be read: {error.strerror}") from error
    if fault is not None:
        raise UserInputError(f"{path} {fault}; {SUPPORTED}")


def unpickle(path: Path) -> Any:
    """What a `torch.save` file holds, if it is tensors, numbers, text and namespaces; nothing in
    it is run.

    Raises:
        UserInputError: There is no such file, it is truncated or of another kind, or it holds
            what could run code.
        EnvironmentFailure: torch is too old to read it safely, or the disk fails.
    """
    _check_torch()
    _check_outside(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: errors are told below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f"holds {name[1]}, which could run code" if name else "is another kind of pickle"
        raise UserInputError(f"{path} {held}; {SUPPORTED}") from error
    except MemoryError:
        raise
    except Exception as error:  # whatever a broken file leads torch's reader to
        reason = short(str(error).partition("\n")[0] or type(error).__name__)[1:-1]
        raise UserInputError(
            f"{path} is damaged, or another kind of pickle ({reason}); {SUPPORTED}"
        ) from error
