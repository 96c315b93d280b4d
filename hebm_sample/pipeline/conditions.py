"""Conditions, from the words that users write to the arithmetic of `prior.symbols`.

    {"class": "horse"}                  y in {horse}
    {"class": ["cat", "dog"]}           OR: y in {cat, dog}
    {"class": "~cat"}                   NOT: y in everything but cat
    {"Smiling": "yes", "Male": "no"}    AND: several variables at once

Several negations in a list exclude all of them. For variables with the values "no" and "yes", True
and False are accepted too.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from hebm_sample.config import MAX_GUIDANCE, SymbolConfig, plain, require_range
from hebm_sample.errors import UserInputError
from hebm_sample.prior.symbols import Condition, SymbolTable, open_condition

__all__ = [
    "Guidance",
    "Symbols",
    "allowed_values",
    "find_symbol",
    "plain_guidance",
    "read_condition",
]

TargetValue = str | bool | Sequence[str]
Symbols = Mapping[str, TargetValue] | Sequence[Mapping[str, TargetValue]]
Guidance = float | Mapping[str, float]

MOST_SHOWN = 24


def _unknown(word: Any, known: Iterable[str], what: str) -> UserInputError:
    """An error that lists what is known, the nearest match first."""
    names = list(known)
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(word).lower(), lowered, n=1, cutoff=0.5)
    hint = f" (did you mean {lowered[close[0]]!r}?)" if close else ""
    shown = ", ".join(names[:MOST_SHOWN]) + (", ..." if len(names) > MOST_SHOWN else "")
    return UserInputError(f"{what} {word!r}{hint}; it has {shown}")


def find_symbol(symbols: Sequence[SymbolConfig], name: str, model: str) -> SymbolConfig:
    """The variable called `name`; `UserInputError` names those that there are."""
    if not symbols:
        raise UserInputError(
            f"{model} has no symbols, so {name!r} cannot be asked for; "
            "`hebm-sample --list` shows the models that have"
        )
    for symbol in symbols:
        if symbol.name == name:
            return symbol
    raise _unknown(name, (s.name for s in symbols), f"{model} has no symbol")


def plain_guidance(guidance: Any) -> Guidance:
    """Numbers of NumPy and torch as Python's own; `UserInputError` for what is out of range."""
    named: Mapping[str, Any] = guidance if isinstance(guidance, Mapping) else {"": guidance}
    for name, value in named.items():
        require_range(f"guidance of {name}" if name else "guidance", value, 0.0, MAX_GUIDANCE)
    found = {name: plain(value) for name, value in named.items()}
    return found if isinstance(guidance, Mapping) else found[""]


def _items(symbol: SymbolConfig, target: Any) -> list[str]:
    target = plain(target)
    if isinstance(target, bool):
        target = "yes" if target else "no"
    items = [target] if isinstance(target, str) else target
    if (
        not isinstance(items, Sequence)
        or not items
        or not all(isinstance(item, str) for item in items)
    ):
        raise UserInputError(
            f"symbol {symbol.name!r} is asked to be {target!r}; write a value, ~value, or a list"
        )
    return list(items)


def allowed_values(symbol: SymbolConfig, target: TargetValue) -> frozenset[int]:
    """S, the positions of the values that a target value allows.

    Raises `UserInputError` for an unknown value, and where nothing is left.

    >>> animal = SymbolConfig("class", ("cat", "dog", "ship"))
    >>> sorted(allowed_values(animal, "dog")), sorted(allowed_values(animal, "~ship"))
    ([1], [0, 1])
    >>> allowed_values(animal, "shp")
    Traceback (most recent call last):
    hebm_sample.errors.UserInputError: symbol 'class' has no value 'shp' (did you mean 'ship'?);
    it has cat, dog, ship
    """
    positive, negative = set(), set()
    for item in _items(symbol, target):
        value = item.removeprefix("~")
        if value not in symbol.values:
            raise _unknown(value, symbol.values, f"symbol {symbol.name!r} has no value")
        (negative if item.startswith("~") else positive).add(symbol.values.index(value))
    both = sorted(positive & negative)
    every = set(range(len(symbol.values)))
    left = (positive or every) - negative
    if both or not left:
        which = symbol.values[both[0]] if both else "any value"
        raise UserInputError(
            f"symbol {symbol.name!r} is asked to be {which} and not to be; "
            "leave one of the two out"
        )
    return frozenset(left)


def _weights(
    symbols: Sequence[SymbolConfig], guidance: Guidance, named: set[str], model: str
) -> dict[str, float]:
    """w_v of every variable of the condition."""
    if isinstance(guidance, Mapping):
        for name in guidance:
            find_symbol(symbols, name, model)
            if name not in named:
                raise UserInputError(
                    f"guidance is given for {name!r}, which is not asked for; "
                    "name it in symbols, or leave its guidance out"
                )
    return {
        name: guidance.get(name, 1.0) if isinstance(guidance, Mapping) else guidance
        for name in named
    }


@torch.inference_mode(False)  # else no chain could be differentiated through it
def read_condition(
    table: SymbolTable, symbols: Symbols | None, guidance: Guidance, count: int, model: str
) -> Condition | None:
    """The condition of `count` images; None for the unconditional model.

    Arguments:
        symbols: One mapping for all, or one per image.
        guidance: w, for all variables or by name.
        model: Its name, for messages.

    Raises:
        UserInputError: An unknown variable or value, a contradiction, a guidance out of range, or
            another number of mappings than images.
    """
    guidance = plain_guidance(guidance)
    if symbols is None:
        if guidance != 1.0:
            raise UserInputError("guidance is given, but no symbols that it could weigh")
        return None
    if not isinstance(symbols, (Mapping, list, tuple)):
        raise UserInputError(f"symbols is {symbols!r}; give one mapping per image, or one for all")
    rows = [symbols] * count if isinstance(symbols, Mapping) else list(symbols)
    if len(rows) != count or not all(isinstance(row, Mapping) for row in rows):
        raise UserInputError(
            f"symbols is a list of {len(rows)} for {count} images; give one mapping per image, "
            "or one for all"
        )
    named = {name for row in rows for name in row}
    weights = _weights(table.symbols, guidance, named, model)
    condition = open_condition(table, count)
    allowed = table.split(condition.allowed)
    for i, row in enumerate(rows):
        for name, target in row.items():
            symbol = find_symbol(table.symbols, name, model)
            values, v = allowed_values(symbol, target), table.symbols.index(symbol)
            every = range(len(symbol.values))
            allowed[v][i] = torch.tensor([j in values for j in every], device="cpu")
            condition.weight[i, v] = weights[name]
    return condition
