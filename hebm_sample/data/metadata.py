"""Labels of a folder's images in a table beside them: `metadata.jsonl` or `metadata.csv` in the
form of Hugging Face data sets, a row per image, whose column `file_name` is relative to the file;
or StyleGAN's `dataset.json`, {"labels": [["00000/img00000000.png", 6], ...]}.
"""

import csv
import io
import json
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

from hebm_sample.errors import UserInputError
from hebm_sample.io.files import short

__all__ = ["METADATA_NAMES", "STYLEGAN_NAME", "is_stylegan", "match_rows", "metadata_rows"]

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
STYLEGAN_NAME = "dataset.json"


def metadata_rows(table: Path) -> list[tuple[str, dict[str, Any]]]:
    """(file's name as it is written, labels) of each row of a table.

    Raises `UserInputError` that names the line that does not fit.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    try:
        text = _text(table)
        if table.name == STYLEGAN_NAME:
            return _stylegan_rows(table, text)
        read = _json_lines if table.suffix == ".jsonl" else _csv_lines
        for number, row in read(table, text):
            labels = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
            name = labels.pop("file_name", None)
            if not isinstance(name, str):
                raise UserInputError(f"{table}, line {number}: a row needs a text file_name")
            found.append((name, labels))
    except (UnicodeDecodeError, csv.Error, OSError, RecursionError) as error:
        raise UserInputError(f"{table} could not be read: {error}") from error
    return found


def _text(table: Path) -> str:
    """The file as text: UTF-8, or what the mark at its start says."""
    data = table.read_bytes()
    marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if marked else "utf-8-sig")


def _json_lines(table: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line, object_pairs_hook=_once)
            except ValueError as error:
                reason = getattr(error, "msg", error)
                raise UserInputError(f"{table}, line {number}: not JSON ({reason})") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1)
        raise ValueError(f"{short(twice)} stands twice")
    return found


def _csv_lines(table: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Line ends are the reader's business: cells can hold some. Strict: a quote that is never
    # closed would swallow the rows below it.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    written = next((row for row in reader if row), list[str]())
    header = [name.strip() for name in written]
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise UserInputError(f"{table} has two columns called {twice[0]}; rename one of them")
    for row in reader:
        if any(cell.strip() for cell in row[len(header) :]):
            raise UserInputError(
                f"{table}, line {reader.line_num}: {len(row)} cells under {len(header)} columns; "
                'write texts that hold commas in quotes, "red, big"'
            )
        # Where the header has spaces after its commas, so have the rows.
        cells = [
            cell.strip() if name.startswith(" ") else cell
            for name, cell in zip(written, row, strict=False)
        ]
        if row:  # an empty cell is an unknown label
            yield (
                reader.line_num,
                {
                    name: cell or None
                    for name, cell in zip_longest(header, cells[: len(header)])
                    if name
                },
            )


def is_stylegan(table: Path) -> bool:
    """Whether a `dataset.json` is StyleGAN's: others have that name for other things.

    Raises `UserInputError` where it is no JSON: then nobody knows what it was.
    """
    try:
        found = json.loads(_text(table))
    except (ValueError, OSError, RecursionError) as error:
        raise UserInputError(
            f"{table} is not JSON ({short(str(error))}); copy it again, or remove it"
        ) from error
    return isinstance(found, dict) and "labels" in found


def _stylegan_rows(table: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        labels: list[tuple[Any, Any]] = json.loads(text)["labels"] or []
        return [(str(name), {"label": value}) for name, value in labels]
    except (ValueError, KeyError, TypeError) as error:
        raise UserInputError(
            f'{table} is not as StyleGAN writes it: {{"labels": [["00000/img.png", 6], ...]}}'
        ) from error


def match_rows(
    tables: Iterable[Path], root: Path, names: Iterable[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[int, int]]]:
    """Labels by image, and (rows that name no image, rows) of each table.

    A name fits as it is written, or else where separators, Unicode form and the case of its suffix
    differ and one image alone is meant.

    Arguments:
        tables: Below `root`.
        root: The data's folder.
        names: Of all images below it, relative, with `/`.

    Raises `UserInputError` where two rows give one image other labels.
    """
    exact, loose = set(names), dict[str, str | None]()
    for name in exact:
        key = _loose(name)
        loose[key] = None if key in loose else name
    rows: dict[str, dict[str, Any]] = {}
    unmatched: dict[str, tuple[int, int]] = {}
    for table in tables:
        base = table.parent.relative_to(root).as_posix()
        missed, read = 0, metadata_rows(table)
        for written, row in read:
            name = _below(base, written)
            image = name if name in exact else loose.get(_loose(_below(base, written, True)))
            if image is None:
                missed += 1
                continue
            if image in rows and any(rows[image].get(k, v) != v for k, v in row.items()):
                raise UserInputError(
                    f"{table} has two rows with other labels for {image}; leave one of them"
                )
            rows.setdefault(image, {}).update(row)
        unmatched[table.relative_to(root).as_posix()] = missed, len(read)
    return rows, unmatched


def _below(base: str, written: str, slashes: bool = False) -> str:
    """A name in a table of folder `base`, relative to the data's folder."""
    written = written.replace("\\", "/") if slashes else written
    return posixpath.normpath(posixpath.join(base, written))


def _loose(name: str) -> str:
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()
