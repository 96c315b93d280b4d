"""How what is typed is read: click's parameter types.

seeds, groups    0-15,20                                 `hebm_sample.io.seeds`
target           value | ~value | value,value            NAME or NAME=target for --attr
guidance         W | NAME=W
factors          0.8 | 1,1,0.7                           one, or one per group
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import click

from hebm_sample.config import MAX_GUIDANCE
from hebm_sample.config.sampler import MAX_FACTORS
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import MAX_SEEDS, parse_seeds

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
    "known_value",
    "known_word",
]

MAX_TEMPERATURE = 10.0
_ANSWERS = {"true": "yes", "1": "yes", "on": "yes", "false": "no", "0": "no", "off": "no"}
MAX_BATCH = min(4096, MAX_SEEDS)


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
        return 0 if value in ("auto", 0) else super().convert(value, param, ctx)


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


# Words that a model knows by another spelling


def _folded(word: str) -> str:
    return re.sub(r"[\s_-]+", "", word).casefold()


def known_word(word: str, known: Iterable[str]) -> str:
    """The one of `known` that is the same without regard to case, spaces, underscores and
    hyphens; `word` itself where there is none, or more than one.

    >>> known_word("blond hair", ["Smiling", "Blond_Hair"])
    'Blond_Hair'
    """
    names = list(known)
    found = [name for name in names if _folded(name) == _folded(word)]
    return found[0] if word not in names and len(found) == 1 else word


def known_value(value: str, values: Sequence[str]) -> str:
    """The same of a target, `~cat` included; true, 1, false and 0 are yes and no.

    >>> known_value("True", ("no", "yes")), known_value("~YES", ("no", "yes"))
    ('yes', '~yes')
    """
    bare = value.removeprefix("~")
    sign = value[: len(value) - len(bare)]
    if set(values) == {"no", "yes"} and bare not in values:
        bare = _ANSWERS.get(_folded(bare), bare)
    return sign + known_word(bare, values)
