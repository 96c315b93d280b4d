"""Words in another spelling than their owner's: of models, of variables and of their values."""

import re
from collections.abc import Iterable, Sequence

__all__ = ["known_value", "known_values", "known_word", "means_yes"]

# What is said of a variable of two values, by what they are called.
_ANSWERS = (("no", "false", "n", "f", "off", "0", "-1"), ("yes", "true", "y", "t", "on", "1"))


def _folded(word: str) -> str:
    """Letters, digits and points alone: what else there is differs between spellings, and a label
    that becomes a symbol's value loses it.
    """
    return re.sub(r"[^A-Za-z0-9.]+", "", word).casefold()


def known_word(word: str, known: Iterable[str]) -> str:
    """The one of `known` that is the same without regard to case, spaces, underscores, hyphens and
    the like; `word` itself where there is none, or more than one.

    >>> known_word("blond hair", ["Smiling", "Blond_Hair"])
    'Blond_Hair'
    """
    names, folded = list(known), _folded(word)
    found = [name for name in names if folded and _folded(name) == folded]
    return found[0] if word not in names and len(found) == 1 else word


def known_value(value: str, values: Sequence[str]) -> str:
    """The same of a target, `~cat` included; true, 1, false, 0 and -1 are yes and no, whatever
    the two values of the variable are called.

    >>> known_value("True", ("no", "yes")), known_value("~YES", ("No", "Yes"))
    ('yes', '~Yes')
    """
    bare = value.removeprefix("~")
    sign = value[: len(value) - len(bare)]
    found = known_word(bare, values)
    return sign + (found if found in values else _answer(bare, values))


def means_yes(word: str) -> bool | None:
    """Whether a word means yes; None of a word that means neither yes nor no.

    >>> means_yes("TRUE"), means_yes("-1"), means_yes("cat")
    (True, False, None)
    """
    asked, (no, yes) = word.strip().casefold(), _ANSWERS
    return asked in yes if asked in no + yes else None


def _answer(word: str, values: Sequence[str]) -> str:
    """The value that means it, of two that mean no and yes; `word` itself if there is none."""
    asked = means_yes(word)
    meaning = {means_yes(value): value for value in values}
    is_answered = len(values) == 2 and meaning.keys() == {False, True}
    return word if asked is None or not is_answered else meaning[asked]


def known_values(items: Sequence[str], values: Sequence[str]) -> tuple[str, ...]:
    """The same of several targets. A value with commas in it was typed as several: it is put
    together again, unless the model has each of them.

    >>> known_values(("Paris", "France", "rome"), ("Paris_France", "Rome"))
    ('Paris_France', 'Rome')
    """
    found: list[str] = []
    start = 0
    while start < len(items):
        ends = [start + 1, *range(len(items), start + 1, -1)]
        joined = ((end, known_value(", ".join(items[start:end]), values)) for end in ends)
        known = ((end, word) for end, word in joined if word.removeprefix("~") in values)
        end, word = next(known, (start + 1, items[start]))
        found.append(word)
        start = end
    return tuple(found)
