"""Data sets of the Hub, through `datasets`, map-style, so that row numbers are fixed."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hebm_sample.data import source as rows_source
from hebm_sample.data.parquet import best_named, column_notes, encoded_cell, first_line
from hebm_sample.data.source import Chunk, Source
from hebm_sample.errors import HubError, UserInputError
from hebm_sample.io.extras import import_extra

__all__ = ["hub_source"]


def hub_source(name: str, split: str | None) -> Source:
    """The rows of `owner/name`: its column of images, and its simple columns as labels.

    Raises `UserInputError` where there is no such data set, split or column, `HubError` where it
    cannot be fetched.
    """
    datasets: Any = import_extra("datasets", "train")
    table = _loaded(datasets, name, split or "train")
    kinds = table.features.items()
    images = [k for k, v in kinds if isinstance(v, datasets.Image)]
    if not images:
        raise UserInputError(
            f"the data set {name} has no column of images; it has {list(table.features)}"
        )
    image = best_named(images)
    names = {k: tuple(v.names) for k, v in kinds if isinstance(v, datasets.ClassLabel)}
    simple = [k for k, v in kinds if isinstance(v, (datasets.Value, datasets.ClassLabel))]
    notes = column_notes(image, [k for k in table.features if k not in (image, *simple)])
    table = table.select_columns([image, *simple]).cast_column(image, datasets.Image(decode=False))

    places = _places(datasets)

    def chunks() -> Iterator[Chunk]:
        size = rows_source.CHUNK_ROWS
        for start in range(0, len(table), size):
            columns = table[start : start + size]
            cells = [_of_the_set(encoded_cell(cell), places) for cell in columns.pop(image)]
            yield Chunk(0, cells, columns, [str(start + i) for i in range(len(cells))])

    return Source([name, split, table._fingerprint], len(table), names, chunks, {}, notes)


def _places(datasets: Any) -> list[Path]:
    """Where files of a set lie that the client has fetched."""
    from huggingface_hub import constants

    config = datasets.config
    names = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    return [Path(name).resolve() for name in names]


def _of_the_set(cell: bytes | Path | None, places: Sequence[Path]) -> bytes | Path | None:
    """A cell that names another file of this machine than one of the set's is no image's."""
    if not isinstance(cell, Path):
        return cell
    inside = any(cell.resolve().is_relative_to(place) for place in places)
    return cell if inside and cell.is_file() else None


def _loaded(datasets: Any, name: str, split: str) -> Any:
    shown = sys.stderr.isatty() or "ipykernel" in sys.modules  # a file gets none of their lines
    quiet = not shown and not datasets.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, split=split)
    except (datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        raise UserInputError(
            f"{name} is neither a folder here nor a data set on the Hub with the split "
            f"{split!r}: {first_line(error)}"
        ) from error
    except Exception as error:  # the client raises whatever its transport raises
        raise HubError(f"the data set {name} could not be fetched: {first_line(error)}") from error
    finally:
        if quiet:
            datasets.enable_progress_bars()
