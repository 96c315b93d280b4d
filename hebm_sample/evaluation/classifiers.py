"""Attribute classifiers for the data at hand: which columns, one network a data set and recipe.

Value j of a variable of the model is label j of its column.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hebm_sample.config import SymbolConfig
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.distances import cache_path, kept_network
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.metrics.attribute_classifier import (
    AttributeClassifier,
    accuracies,
    load_attribute_classifier,
    save_attribute_classifier,
    train_attribute_classifier,
)
from hebm_sample.pipeline.conditions import allowed_values, find_symbol
from hebm_sample.presets.models import PRESETS
from hebm_sample.training.label_columns import check_numbers

__all__ = [
    "TargetValues",
    "columns_there",
    "find_attribute_classifier",
    "label_columns",
    "parse_condition",
]

CLASSIFIER_RECIPE = 1
CLASSIFIER_EPOCHS = 10
CLASSIFIER_BATCH = 128
TargetValues = dict[str, str]  # variable to target value


def _require_column(images: ImageDataset, column: str) -> None:
    if column not in images.labels:
        raise UserInputError(
            f"the data have no label column {column!r}; they have "
            f"{', '.join(sorted(images.labels)) or 'none'}"
        )


def columns_there(
    symbols: Sequence[SymbolConfig],
    images: ImageDataset,
    model: str,
    named: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """As `label_columns`, unchecked: empty where the data have no labels for any symbol."""
    preset = PRESETS.get(model)
    columns = dict(preset.label_columns) if preset is not None else {}
    columns |= named or {}
    found = {s.name: columns.get(s.name, s.name) for s in symbols}
    return {name: column for name, column in found.items() if column in images.labels}


def label_columns(
    symbols: Sequence[SymbolConfig],
    images: ImageDataset,
    model: str,
    named: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Which column of the data holds the labels of which variable.

    Arguments:
        symbols: The model's.
        images: With their labels; value j of a variable is label j.
        model: A preset of that name says so; else columns are called as the variables.
        named: Variable to column, in the preset's place.

    Variables without a column are left out. Raises `UserInputError` if a named one does not exist,
    none is left, or a column's labels are not the variable's values.
    """
    for name, column in (named or {}).items():
        find_symbol(symbols, name, model)
        _require_column(images, column)
    found = columns_there(symbols, images, model, named)
    if not found:
        raise UserInputError(
            f"the data have no labels for any symbol of {model} "
            f"({', '.join(s.name for s in symbols) or 'it has none'}); "
            "name a column with --label-column SYMBOL=COLUMN"
        )
    for symbol in symbols:
        if (column := found.get(symbol.name)) is not None:
            names = images.label_names.get(column)
            check_numbers(symbol, column, images.labels[column], names)
    return found


def parse_condition(text: str, symbols: Sequence[SymbolConfig], model: str) -> TargetValues:
    """`Male=no,Smiling` to variable and value; a name alone means yes. Raises `UserInputError`."""
    target: TargetValues = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        symbol, value = find_symbol(symbols, name, model), value or "yes"
        if name in target or len(allowed_values(symbol, value)) != 1 or value.startswith("~"):
            raise UserInputError(f"{text!r} is no set of values: write NAME=VALUE,NAME=VALUE")
        target[name] = value
    return target


@usual_defaults()
def find_attribute_classifier(
    training: ImageDataset,
    held_out: ImageDataset,
    columns: Sequence[str],
    *,
    steps: int | None = None,
    out: Path | None = None,
    cache_dir: Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> tuple[AttributeClassifier, dict[str, Any]]:
    """A classifier of these columns and its report: from the cache, or trained and kept there.

    Arguments:
        training, held_out: What it learns from, and what its accuracies are measured on.
        steps: Of training; ten passes over the rows if None.
        out: Keep it in this file, in place of the cache, and always train it.
        cache_dir: By default $HEBM_CACHE or ~/.cache/hebm_sample; of it the folder `judges`.

    Raises:
        UserInputError: A column that the data have not, or without any known label.
    """
    columns = sorted(set(columns))
    for column in columns:
        _require_column(training, column)
        if not (training.labels[column] >= 0).any():
            raise UserInputError(f"label column {column!r} is unknown in every training row")
    steps = steps or max(2, CLASSIFIER_EPOCHS * len(training) // CLASSIFIER_BATCH)
    key = [CLASSIFIER_RECIPE, steps, columns, training.identity]
    path = out or cache_path("judges", key, cache_dir)
    load = partial(load_attribute_classifier, device=device)
    known = kept_network(path, load) if out is None else None
    if known is not None:
        return known[0], _report_on(known, held_out)
    labels = {column: training.labels[column] for column in columns}
    batch = min(CLASSIFIER_BATCH, len(training))
    classifier, report = train_attribute_classifier(
        training.images, labels, steps=steps, batch_size=batch, device=device, progress=progress
    )
    names = {c: list(training.label_names[c]) for c in columns if c in training.label_names}
    report |= {"data": training.identity, "values": names}
    report = _report_on((classifier, report), held_out)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_attribute_classifier(classifier, path, report)
    return classifier, report


def _report_on(
    found: tuple[AttributeClassifier, dict[str, Any]], held_out: ImageDataset
) -> dict[str, Any]:
    """A classifier's report with its accuracies on these very held-out images."""
    classifier, report = found
    if report.get("held_out") == held_out.identity:
        return report
    predictions = classifier.predict(np.asarray(held_out.images))
    columns = accuracies(predictions, held_out.labels)
    return report | {"held_out": held_out.identity, "columns": columns}


_RENAMED = {"find_judge": find_attribute_classifier, "parse_wish": parse_condition}


def __getattr__(name: str) -> Any:
    """Names that earlier pages showed."""
    if name in _RENAMED:
        return _RENAMED[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
