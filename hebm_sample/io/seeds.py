"""The grammar of seeds: `0-15,20` is a list of whole numbers, one per image.

    seeds = item ("," item)*        item = number | number "-" number        number in [0, 2^32)

A range holds both its ends. Spaces around numbers do not matter; the order is kept. A seed that
occurs twice is an error rather than a second equal image; so is a range that runs backwards.
"""

import itertools
import operator
import re
from collections.abc import Sequence
from typing import Any

from hebm_sample.errors import UserInputError

__all__ = [
    "MAX_SEED",
    "MAX_SEEDS",
    "checked_seed",
    "continued_seed",
    "derived_seed",
    "format_seeds",
    "parse_seeds",
    "posterior_seed",
]

MAX_SEEDS = 100_000
# torch's CPU generator reads 32 bits: larger seeds would repeat smaller ones.
MAX_SEED = 2**32 - 1

# Streams of a seed that are not its chain's: of samples of the posterior, and of chains that go on
# from an image's latents.
_POSTERIOR_STREAM, _CONTINUED_STREAM = 0x656E63, 0x636E74

# [0-9] rather than \d: other scripts' digits are not what anybody means by a seed.
_ITEM = re.compile(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _number(digits: str) -> int:
    # Compared by length first: int() refuses thousands of digits with an error of its own.
    significant = digits.lstrip("0")
    if len(significant) > len(str(MAX_SEED)) or int(significant or "0") > MAX_SEED:
        raise UserInputError(
            f"the seed {_shown(digits)[1:-1]} is too large; seeds lie in [0, 2**32)"
        )
    return int(significant or "0")


def _item(text: str) -> range:
    match = _ITEM.fullmatch(text)
    if match is None:
        raise UserInputError(
            f"{_shown(text)} is not a seed; write numbers and ranges such as 0-15,20"
        )
    first = _number(match[1])
    last = first if match[2] is None else _number(match[2])
    if last < first:
        raise UserInputError(
            f"the range {_shown(text.strip())} runs backwards; write {last}-{first}"
        )
    return range(first, last + 1)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds in the order written, e.g. (0, 1, 2, 20) from `0-2,20`.

    Raises `UserInputError` for anything outside the grammar, a seed of 2^32 or more, a seed given
    twice, or more than `MAX_SEEDS` seeds.

    >>> parse_seeds("0-2, 20")
    (0, 1, 2, 20)
    >>> parse_seeds("3-1")
    Traceback (most recent call last):
    hebm_sample.errors.UserInputError: the range '3-1' runs backwards; write 1-3
    """
    seeds: list[int] = []
    for part in text.split(","):
        seeds_of_part = _item(part)
        # Python's len() of a range overflows; the difference does not.
        if len(seeds) + (seeds_of_part.stop - seeds_of_part.start) > MAX_SEEDS:
            raise UserInputError(
                f"{_shown(text)} has more than {MAX_SEEDS} seeds; ask for fewer at a time"
            )
        seeds.extend(seeds_of_part)
    seen: set[int] = set()
    for seed in seeds:
        if seed in seen:
            raise UserInputError(
                f"seed {seed} is given twice in {_shown(text)}; give each seed once"
            )
        seen.add(seed)
    return tuple(seeds)


def format_seeds(seeds: Sequence[int]) -> str:
    """The shortest text in this grammar that `parse_seeds` turns back into `seeds`.

    >>> format_seeds([0, 1, 2, 20])
    '0-2,20'
    """
    # Within a run of consecutive numbers, value minus position is constant.
    runs = itertools.groupby(enumerate(seeds), key=lambda pair: pair[1] - pair[0])
    parts: list[str] = []
    for _, run in runs:
        values = [value for _, value in run]
        parts.append(str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}")
    return ",".join(parts)


def checked_seed(seed: Any) -> int:
    """A seed as Python's own number; `UserInputError` for what is none, or out of range.

    >>> checked_seed(7)
    7
    """
    try:
        number = None if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = None
    if number is None:
        raise UserInputError(f"seed is {seed!r}; it must be a whole number")
    if not 0 <= number <= MAX_SEED:
        raise UserInputError(f"seed is {number}; it must lie in [0, {MAX_SEED}]")
    return number


def derived_seed(seed: int, number: int) -> int:
    """A seed in [0, 2^32) for the `number`-th further stream of `seed`; 0 is the seed itself.

    splitmix64's finaliser of the pair: neighbours are unrelated.

    >>> derived_seed(7, 0)
    7
    >>> derived_seed(7, 1) == derived_seed(8, 1)
    False
    """
    if number == 0:
        return seed
    x = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return (x ^ (x >> 31)) >> 32


def posterior_seed(seed: int) -> int:
    """The seed of the noise that an image is encoded with. It is never that of the sample that has
    the same number, which may be the image: its u would come back too well.
    """
    return derived_seed(seed, _POSTERIOR_STREAM)


def continued_seed(seed: int) -> int:
    """The seed of the noise that edits, fills in or varies an image. It is never that of the
    sample that has the same number, which may be the image: what is to be drawn anew would come
    back.
    """
    return derived_seed(seed, _CONTINUED_STREAM)
