"""Checks of settings, and dataclasses that round-trip through JSON and refuse unknown keys."""

import dataclasses
import types
import typing
from typing import Any, TypeVar, get_args

from hebm_sample.errors import UserInputError, short

__all__ = [
    "FORMAT_VERSION",
    "ConfigBase",
    "plain",
    "require",
    "require_choice",
    "require_integer",
    "require_range",
    "require_version",
]

FORMAT_VERSION = 1

_C = TypeVar("_C", bound="ConfigBase")


def require(condition: bool, message: str) -> None:
    """Raise `UserInputError` with `message` unless the condition holds."""
    if not condition:
        raise UserInputError(message)


def require_choice(name: str, value: object, choices: Any) -> None:
    """Raise `UserInputError` unless `value` is one of the `Literal` type's values."""
    allowed = get_args(choices)
    kinds: tuple[type, ...] = tuple(map(type, allowed))
    # Arrays and tensors compare number by number.
    known = isinstance(value, kinds) and value in allowed
    require(known, f"{name} is {short(value)}; it can be {', '.join(map(repr, allowed))}")


def plain(value: Any) -> Any:
    """A single number of NumPy or torch as Python's own; anything else as it is.

    >>> import numpy as np
    >>> plain(np.float64(0.5)), plain(np.int32(3)), plain("a")
    (0.5, 3, 'a')
    """
    return value.item() if getattr(value, "ndim", None) == 0 else value


def require_range(name: str, value: object, low: float, high: float) -> None:
    """Raise `UserInputError` unless `value` is a finite number in [low, high]."""
    value = plain(value)
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    require(fits, f"{name} is {short(value)}; it must lie in [{low}, {high}]")


def require_integer(name: str, value: object, low: int, high: int) -> int:
    """`value` as Python's own number; raises `UserInputError` unless it is whole and in [low,
    high].
    """
    value = plain(value)
    require(
        isinstance(value, int) and not isinstance(value, bool),
        f"{name} is {short(value)}; it must be a whole number",
    )
    require_range(name, value, low, high)
    return typing.cast("int", value)


def _decode(kind: Any, value: Any, path: str) -> Any:
    """One JSON value as the annotated type: nested dataclasses, tuples and optional values."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        kinds = [k for k in get_args(kind) if k is not type(None)]
        described = all(dataclasses.is_dataclass(k) for k in kinds)
        if value is None and (type(None) in get_args(kind) or not described):
            return None
        if described:
            return _decode(_of_kind(kinds, value, path), value, path)
        listed = isinstance(value, (list, tuple))
        fitting = [k for k in kinds if (typing.get_origin(k) is tuple) == listed]
        return _decode((fitting or kinds)[0], value, path)
    if origin is tuple:
        require(isinstance(value, (list, tuple)), f"{path} is {short(value)}; it must be a list")
        item = get_args(kind)[0]
        return tuple(_decode(item, v, f"{path}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return typing.cast("type[ConfigBase]", kind).from_dict(value, path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        require(abs(value) < 2**1023, f"{path} is a whole number of too many digits")
        return float(value)
    if kind in (int, float, str, bool):
        require(
            type(value) is kind, f"{path} is {short(value)}; it must be of type {kind.__name__}"
        )
    return value


def _of_kind(classes: list[Any], value: Any, path: str) -> Any:
    """The dataclass whose `kind` the object names; the one without that field if it names none."""
    found = typing.cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    kinds = {getattr(c, "kind", None): c for c in classes}
    kind = found.get("kind")
    known = [k for k in kinds if k is not None]
    require(
        kind is None or (isinstance(kind, str) and kind in kinds),
        f"{path}.kind is {short(kind)}; it can be {', '.join(map(repr, known))}, or left out",
    )
    return kinds.get(kind, classes[0])


def require_version(version: object) -> None:
    """Raise `UserInputError` unless it is this release's `FORMAT_VERSION`."""
    require(
        version == FORMAT_VERSION and not isinstance(version, bool),
        f"format_version is {short(version)}; this release reads {FORMAT_VERSION}: "
        "upgrade hebm_sample, or export the model again",
    )


class ConfigBase:
    """Dictionary round trip shared by the dataclasses below."""

    @classmethod
    def from_dict(cls: type[_C], data: Any, path: str = "config") -> _C:
        """Build from plain JSON values; raises `UserInputError` on unknown, missing or ill-typed
        keys.
        """
        require(isinstance(data, dict), f"{path} is {type(data).__name__}; it must be an object")
        fields = {f.name: f for f in dataclasses.fields(typing.cast("Any", cls))}
        unknown = sorted(set(data) - set(fields), key=short)
        require(
            not unknown, f"{path} has unknown keys {short(unknown)}; known are {sorted(fields)}"
        )
        needed = {
            n
            for n, f in fields.items()
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        missing = sorted(needed - set(data))
        require(not missing, f"{path} lacks the keys {missing}")
        hints = typing.get_type_hints(cls)
        return cls(**{k: _decode(hints[k], v, f"{path}.{k}") for k, v in data.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict(to_dict())` is the identity."""
        return dataclasses.asdict(typing.cast("Any", self))
