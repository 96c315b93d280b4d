"""Labels of a folder's pictures, in the form of Hugging Face data sets: `metadata.jsonl` or
`metadata.csv`, a row a picture, whose column `file_name` is relative to the file.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hebm_sample.errors import UserInputError

__all__ = ["METADATA_NAMES", "metadata_rows"]

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


def metadata_rows(table: Path) -> dict[Path, dict[str, Any]]:
    """Labels of each picture that a metadata file names; paths are relative to that file."""
    rows = {}
    read = _json_lines if table.suffix == ".jsonl" else _csv_lines
    try:
        for number, row in read(table):
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                raise UserInputError(f"{table}, line {number}: a row needs a text file_name")
            name = row.pop("file_name")
            rows[table.parent / name] = row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserInputError(f"{table} could not be read: {error}") from error
    return rows


def _json_lines(table: Path) -> Iterator[tuple[int, Any]]:
    with table.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserInputError(
                        f"{table}, line {number}: not JSON ({error.msg})"
                    ) from error


def _csv_lines(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, restkey="")
        for row in reader:
            # restkey collects surplus cells; an empty cell is an unknown label.
            yield reader.line_num, {k: v or None for k, v in row.items() if k}
