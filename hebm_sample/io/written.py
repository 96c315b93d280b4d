"""Folders that commands write to: what they leave there is no data, and what somebody else left
there is not touched.

    a run       .hebm-run, or its log and checkpoints    all that is in it
    a report    .hebm-report, or its results.json        REPORT_NAMES
    a model     its manifest and config.json             samples.png

Such names in a folder that no command has marked are somebody's own files.
"""

import os
import re
from pathlib import Path
from typing import Any, cast

from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.io.files import (
    is_run_folder,
    mark_run_folder,
    parse_json,
    read_regular,
    write_atomically,
)

__all__ = [
    "check_report_folder",
    "check_run_folder",
    "check_source",
    "mark_report_folder",
    "mark_run_folder",
    "of_a_run",
    "written_names",
]

REPORT_MARKER = ".hebm-report"
REPORT_NAMES = frozenset(
    ("draws", "figures", "index.html", "index.md", "nearest.png", "parts", "results.json")
)
RUN_NAMES = frozenset(
    (
        *(
            "best",
            "crop.json",
            "ddpm.safetensors",
            "draws",
            "encoded.bin",
            "encoded.json",
            "evaluation.json",
        ),
        *("generator", "log.jsonl", "model", "recipe.json", "samples", "samples.safetensors"),
        "tensorboard",
    )
)
CHECKPOINT = re.compile(r"checkpoint-\d{8,}(\.\d+)?")
DATA = (
    *(".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".mdb", ".parquet", ".png", ".ppm", ".tif"),
    *(".tiff", ".webp"),
)
MODEL_FILES = ("weights_manifest.json", "config.json")
MOST_RESULTS = 2**28


def of_a_run(name: str) -> bool:
    """Whether a run writes files or folders of this name into its own."""
    return name in RUN_NAMES or CHECKPOINT.fullmatch(name) is not None


def _inside(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise EnvironmentFailure(
            f"the folder {folder} cannot be read: {error.strerror or error}"
        ) from error


def check_run_folder(folder: Path) -> None:
    """Before anything is done: that a run can have this folder.

    Raises:
        UserInputError: It is no run's and holds images, a model, or what a run would write over.
    """
    if is_run_folder(folder):
        return
    names = _inside(folder)
    theirs = [name for name in names if of_a_run(name) or name in MODEL_FILES]
    if theirs and not is_run_folder(folder):  # another process of this run may have begun
        raise UserInputError(
            f"{folder} is no run's folder and holds {', '.join(theirs[:4])}, which a run might "
            "write over; choose another folder, or move them away"
        )
    images = [name for name in names if name.lower().endswith(DATA)]
    if images:
        raise UserInputError(
            f"{folder} holds images ({images[0]}{', ...' * (len(images) > 1)}), and a run's "
            "folder is never read as data; choose another one"
        )


# Reports


def is_report_folder(folder: Path) -> bool:
    """Whether a report was written there: it is marked, or holds a report's numbers."""
    return (folder / REPORT_MARKER).is_file() or report_results(folder) is not None


def report_results(folder: Path) -> dict[str, Any] | None:
    """What a report's `results.json` holds; None where there is none, or somebody else's."""
    try:
        data = read_regular(folder / "results.json", MOST_RESULTS)
        found = parse_json(data) if data else None
    except (OSError, ValueError):
        return None
    keys = {"format_version", "version", "model", "parts"}
    known = isinstance(found, dict) and keys <= set(cast("dict[str, Any]", found))
    return cast("dict[str, Any]", found) if known else None


def check_report_folder(folder: Path, model: str, overwrite: bool = False) -> None:
    """Before anything is measured: that a report of `model` can have this folder.

    Arguments:
        overwrite: Replace another model's report.

    Raises:
        UserInputError: It holds files of such names that no report wrote, or another model's.
    """
    results = report_results(folder)
    if results is not None and results["model"] != model and not overwrite:
        raise UserInputError(
            f"{folder} holds the report of {results['model']}; choose another folder for that of "
            f"{model}, or add --overwrite"
        )
    if is_report_folder(folder):
        return
    # What a first part keeps in draws/ is there before any page.
    theirs = sorted((REPORT_NAMES - {"draws"}) & set(_inside(folder)))
    if theirs:
        raise UserInputError(
            f"{folder} holds {', '.join(theirs)}, which no report of hebm_sample wrote; choose "
            "another folder, or move them away"
        )


def mark_report_folder(folder: Path) -> None:
    """Mark a folder as a report's: the page's images are never taken for data."""
    marker = folder / REPORT_MARKER
    if not marker.exists():
        write_atomically(marker, b"hebm-eval report wrote the page in this folder.\n")


# Reading data


def written_names(folder: str | Path, names: list[str]) -> frozenset[str]:
    """Which of the names in a folder a report or an export wrote, and are no data.

    Arguments:
        names: All that are there.
    """
    found: frozenset[str] = frozenset()
    if REPORT_MARKER in names or ("results.json" in names and is_report_folder(Path(folder))):
        found |= REPORT_NAMES & set(names)
    if all(name in names for name in MODEL_FILES):
        found |= {"samples.png"} & set(names)
    return found


def check_source(root: Path) -> None:
    """`UserInputError` for a folder that a run or a report wrote, or one of those in it."""
    if is_run_folder(root):
        raise UserInputError(
            f"{root} is the folder of a training run, and what a run writes is no data; "
            "give the folder of the images"
        )
    inner = Path(os.path.abspath(root))
    for folder in inner.parents:
        name, inner = inner.name, folder
        if of_a_run(name) and is_run_folder(folder):
            kind = "training run"
        elif name in REPORT_NAMES and is_report_folder(folder):
            kind = "report"
        else:
            continue
        raise UserInputError(
            f"{root} lies in {folder}, the folder of a {kind}, and what that writes is no data; "
            "give the folder of the images"
        )
