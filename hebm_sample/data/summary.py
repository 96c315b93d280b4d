"""What was read, in one line: images, labels, rows held out, and what was left out and why."""

from collections.abc import Mapping

import numpy as np

from hebm_sample.data.images import UNREADABLE, ImageDataset
from hebm_sample.data.source import Source
from hebm_sample.io.files import printable

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
    parts = [f"{printable(shown)}: {sum(map(len, sets)):,} images", _labels(sets)]
    count = 0 if held_out is None else len(held_out)
    parts.append(f"{count:,} held out, {rule}" if count else "none held out")
    parts += [printable(note) for note in dict.fromkeys(note for s in sets for note in s.notes)]
    if left_out := _left_out(training, held_out):
        parts.append("left out: " + _listed(left_out))
    return "; ".join(parts)


def source_line(shown: str, source: Source) -> str:
    """The same of data that are not decoded: how many, and what is left out."""
    parts = [f"{printable(shown)}: {source.total:,} images", *map(printable, source.notes)]
    if source.left_out:
        parts.append("left out: " + _listed(source.left_out))
    return "; ".join(parts)


def _left_out(training: ImageDataset, held_out: ImageDataset | None) -> dict[str, int]:
    """What is in neither set. A split of its own leaves the training rows out, and they it."""
    left_out = dict(training.left_out)
    if held_out is None or _set(held_out) == _set(training):
        return left_out
    for reason, count in held_out.taken.items():
        left_out[reason] = left_out.get(reason, 0) - count
    left_out[UNREADABLE] = left_out.get(UNREADABLE, 0) + held_out.left_out.get(UNREADABLE, 0)
    return {reason: count for reason, count in left_out.items() if count > 0}


def held_out_rule(validation: int | None) -> str:
    """How `ImageDataset.split` chooses rows."""
    return "the last rows" if validation else "by a hash of their names"


def _set(images: ImageDataset) -> str:
    """The identity of all rows that some are of."""
    return images.identity.partition("[")[0]


def _listed(reasons: Mapping[str, int]) -> str:
    items = [f"{count:,} {printable(reason)}" for reason, count in reasons.items()]
    more = len(items) - MOST_REASONS
    return ", ".join(items[:MOST_REASONS]) + (f" and {more} other kinds" if more > 0 else "")


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
        first = ", ".join(map(printable, names[:MOST_COLUMNS]))
        return f"{len(names)} label columns ({first}, ...), each known of {of} of {total:,}"
    return "; ".join(f"{_column(sets, name)}, known of {known[name]:,}" for name in names)


def _column(sets: list[ImageDataset], name: str) -> str:
    values = sets[0].label_names.get(name)
    if values is None:
        found = {int(v) for s in sets if name in s.labels for v in np.unique(s.labels[name])}
        values = tuple(map(str, sorted(found - {-1})))
    shown = ", ".join(map(printable, values[:MOST_NAMES])) + (", ..." * (len(values) > MOST_NAMES))
    noun = "value" if len(values) == 1 else "values"
    return f"{printable(name)}: {len(values)} {noun} ({shown})"
