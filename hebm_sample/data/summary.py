"""What was read, in one line: images, labels, rows held out, and what was left out and why."""

from collections.abc import Mapping

import numpy as np

from hebm_sample.data.images import ImageDataset
from hebm_sample.data.source import Source

__all__ = ["data_line", "held_out_rule", "source_line"]

MOST_COLUMNS = 4
MOST_NAMES = 8
MOST_REASONS = 8


def data_line(shown: str, training: ImageDataset, held_out: ImageDataset | None, rule: str) -> str:
    """One line for a person.

    Arguments:
        shown: The data as they were given.
        training: Rows that are trained on.
        held_out: Those that are not; None where nothing is kept apart.
        rule: How they were chosen, of `held_out_rule`.
    """
    sets = [training] if held_out is None else [training, held_out]
    parts = [f"{shown}: {sum(map(len, sets)):,} images", _labels(sets)]
    count = 0 if held_out is None else len(held_out)
    parts.append(f"{count:,} held out, {rule}" if count else "none held out")
    parts += training.notes
    # A split of its own leaves the training rows out, which are no loss.
    if training.left_out:
        parts.append("left out: " + _listed(training.left_out))
    return "; ".join(parts)


def source_line(shown: str, source: Source) -> str:
    """The same of data that are not decoded: how many, and what is left out."""
    parts = [f"{shown}: {source.total:,} images", *source.notes]
    if source.left_out:
        parts.append("left out: " + _listed(source.left_out))
    return "; ".join(parts)


def held_out_rule(validation: int | None) -> str:
    """How `ImageDataset.split` chooses rows."""
    return "the last rows" if validation else "by a hash of their names"


def _listed(reasons: Mapping[str, int]) -> str:
    items = [f"{count:,} {_plain(reason)}" for reason, count in reasons.items()]
    more = len(items) - MOST_REASONS
    return ", ".join(items[:MOST_REASONS]) + (f" and {more} other kinds" if more > 0 else "")


def _plain(text: str) -> str:
    """A name that came with the data, fit for a line of a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _labels(sets: list[ImageDataset]) -> str:
    names = list(sets[0].labels)
    total = sum(map(len, sets))
    if not names:
        return "no labels"
    known = {
        name: sum(int((s.labels[name] >= 0).sum()) for s in sets if name in s.labels)
        for name in names
    }
    if len(names) > MOST_COLUMNS:
        low, high = min(known.values()), max(known.values())
        of = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        first = ", ".join(map(_plain, names[:MOST_COLUMNS]))
        return f"{len(names)} label columns ({first}, ...), each known of {of} of {total:,}"
    return "; ".join(f"{_column(sets, name)}, known of {known[name]:,}" for name in names)


def _column(sets: list[ImageDataset], name: str) -> str:
    values = sets[0].label_names.get(name)
    if values is None:
        found = {int(v) for s in sets if name in s.labels for v in np.unique(s.labels[name])}
        values = tuple(map(str, sorted(found - {-1})))
    shown = ", ".join(map(_plain, values[:MOST_NAMES])) + (", ..." * (len(values) > MOST_NAMES))
    noun = "value" if len(values) == 1 else "values"
    return f"{_plain(name)}: {len(values)} {noun} ({shown})"
