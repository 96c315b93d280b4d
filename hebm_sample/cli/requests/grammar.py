"""How what is typed is read: click's parameter types.

seeds, groups    0-15,20                                 `hebm_sample.io.seeds`
target           value | ~value | value,value            NAME or NAME=target for --attr
guidance         W | NAME=W
factors          0.8 | 1,1,0.7                           one, or one per group
"""

import math
from typing import Any

import click

from hebm_sample.config import MAX_GUIDANCE
from hebm_sample.config.sampler import MAX_FACTORS
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import MAX_SEEDS, parse_seeds
from hebm_sample.io.spelling import known_value, known_values, known_word

__all__ = [
    "MAX_BATCH",
    "AttributeType",
    "BatchType",
    "ClassType",
    "FactorsType",
    "GroupsType",
    "GuidanceType",
    "MixType",
    "NumberType",
    "SeedType",
    "SeedsType",
    "WordType",
    "first_of",
    "known_value",
    "known_values",
    "known_word",
]

MAX_TEMPERATURE = 10.0
MAX_BATCH = min(4096, MAX_SEEDS)


class WordType(click.Choice):
    """One of some words, in any spelling that `known_word` knows."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word in its own spelling, or fail as `Choice` does."""
        return super().convert(known_word(str(value), self.choices), param, ctx)


class SeedsType(click.ParamType):
    """`0-15,20` on the command line."""

    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse, or fail as click's parameter types do."""
        try:
            return parse_seeds(value)
        except UserInputError as error:
            self.fail(str(error), param, ctx)


class SeedType(click.ParamType):
    """One seed."""

    name = "seed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, or fail."""
        try:
            seeds = parse_seeds(value)
        except UserInputError as error:
            self.fail(str(error), param, ctx)
        if len(seeds) != 1:
            self.fail(f"{value!r} is more than one seed; give one", param, ctx)
        return seeds[0]


class GroupsType(click.ParamType):
    """`0-3`: latent groups, 0 at the top."""

    name = "groups"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse, or fail; whether the model has them is the model's to say."""
        try:
            return parse_seeds(value)
        except UserInputError:
            self.fail(
                f"{value!r} names no groups; write numbers and ranges such as 0-3, each once",
                param,
                ctx,
            )


class MixType(click.ParamType):
    """`A:B`, two seeds."""

    name = "mix"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """The seed of the coarse groups and that of the fine ones."""
        try:
            seeds = [seed for part in value.split(":") for seed in parse_seeds(part)]
        except UserInputError as error:
            self.fail(str(error), param, ctx)
        if len(seeds) != 2 or value.count(":") != 1 or seeds[0] == seeds[1]:
            self.fail(f"{value!r} is not A:B, two different seeds such as 7:12", param, ctx)
        return seeds[0], seeds[1]


def _targets(text: str) -> tuple[str, ...]:
    """The items of `cat,dog`; none may be empty."""
    items = tuple(part.strip() for part in text.split(","))
    if not all(item.removeprefix("~") for item in items):
        raise ValueError(text)
    return items


class ClassType(click.ParamType):
    """Target values of the variable `class`."""

    name = "class"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[str, ...]]:
        """("class", the items)."""
        try:
            return "class", _targets(value)
        except ValueError:
            self.fail(f"{value!r} names no value; write cat, ~cat or cat,dog", param, ctx)


class BatchType(click.IntRange):
    """A number, or `auto` as 0."""

    def __init__(self) -> None:
        super().__init__(1, MAX_BATCH)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """0, or as `IntRange`."""
        if value == 0 or str(value).strip().casefold() == "auto":
            return 0
        return super().convert(value, param, ctx)


class AttributeType(click.ParamType):
    """`Smiling`, `Eyeglasses=no`."""

    name = "attribute"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[str, ...]]:
        """(name, items); a bare name is "yes"."""
        name, equals, targets = value.partition("=")
        try:
            if name.strip():
                return name.strip(), _targets(targets) if equals else ("yes",)
        except ValueError:
            pass
        self.fail(
            f"{value!r} names no value; write NAME, NAME=value, NAME=~value or NAME=a,b",
            param,
            ctx,
        )


def _number(text: str, high: float) -> float:
    number = float(text)
    if not 0.0 <= number <= high:  # nan lies in no range
        raise ValueError(text)
    return number


class GuidanceType(click.ParamType):
    """`2` or `Smiling=2`."""

    name = "guidance"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str | None, float]:
        """(name, or None for the whole condition; weight)."""
        name, equals, weight = value.rpartition("=")
        try:
            if bool(name.strip()) == bool(equals):
                return name.strip() or None, _number(weight, MAX_GUIDANCE)
        except ValueError:
            pass
        self.fail(
            f"{value!r} is no weight; write W or NAME=W, W from 0 to {MAX_GUIDANCE:g}", param, ctx
        )


class FactorsType(click.ParamType):
    """`0.8`, or `1,1,0.7`: one per group."""

    name = "factors"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | tuple[float, ...]:
        """One number, or several."""
        if value.count(",") >= MAX_FACTORS:
            self.fail(
                f"{value.count(',') + 1} numbers are too many: one, or one per group", param, ctx
            )
        try:
            numbers = tuple(_number(part, MAX_TEMPERATURE) for part in value.split(","))
        except ValueError:
            self.fail(
                f"{value!r} is no number from 0 to {MAX_TEMPERATURE:g}, or one per group: 1,1,0.7",
                param,
                ctx,
            )
        return numbers[0] if len(numbers) == 1 else numbers


class NumberType(click.FloatRange):
    """A finite number of a range: nan lies in none, yet passes click's comparisons."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As `FloatRange`, or fail."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


# Seeds


def first_of(seeds: tuple[int, ...] | None, count: int | None) -> tuple[int, ...] | None:
    """The seeds that are meant: a single one with a number of images is the first of so many, as
    in `pipe(4, seed=7)`.

    >>> first_of((7,), 4), first_of((7, 3), 2), first_of((7,), None)
    ((7, 8, 9, 10), (7, 3), (7,))
    """
    if seeds is None or len(seeds) != 1 or count is None:
        return seeds
    return tuple(range(seeds[0], seeds[0] + count))
