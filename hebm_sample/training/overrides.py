"""Single settings of a preset, changed by name: `--set prior.width=48 --set prior.num_levels=2`.

A name is a part of the preset and a field of it, `sampling.steps`; numbers reach into lists,
`generator.scales.0.width`. A value is JSON, or text where it is none: 0.5, [0.2, 0.6, 1.0], plain.
The parts are those of `Preset`, with `settings` for those of the run at hand; what belongs to
neither, such as `chain_steps`, has no dot. `prior.num_levels` is T: that many levels even in log
SNR between the preset's own lowest and highest, or the release's.

What is changed is config and settings, so the run's checkpoints hold it, and resuming asks for it
again, but for what changes no number: when checkpoints and grids are written, compiling, and what
memory a step takes. The model's `config.json` has what it describes: networks, levels, sampler
and, in the record of the generator's run, the weights of its KL divergences.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from hebm_sample.config import (
    ConfigBase,
    GeneratorConfig,
    LangevinConfig,
    PriorConfig,
    require,
    require_integer,
    require_range,
)
from hebm_sample.config.record import MAX_KL_WEIGHT
from hebm_sample.errors import UserInputError
from hebm_sample.presets.preset import DecoderPlan, Preset
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.elbo import group_weights

__all__ = ["changed", "changed_settings"]

Kind = Literal["generator", "prior", "decoder"]
_PARTS: dict[str, type[ConfigBase]] = {
    "generator": GeneratorConfig,
    "prior": PriorConfig,
    "decoder": DecoderPlan,
    "sampling": LangevinConfig,
    "settings": TrainSettings,
}
# What a run of each kind reads; anything else would have no effect.
_READ: dict[Kind, tuple[str, ...]] = {
    "generator": ("generator", "sampling", "settings"),
    "prior": ("prior", "sampling", "settings"),
    "decoder": ("decoder", "settings"),
}


@dataclass(frozen=True)
class _Plain(ConfigBase):
    """The fields of `Preset` that are numbers, or lists of them."""

    kl_weight: float | tuple[float, ...]
    chain_steps: int
    symbol_weight: float
    condition_share: float

    def __post_init__(self) -> None:
        several = isinstance(self.kl_weight, tuple)
        for weight in cast("Any", self.kl_weight) if several else (self.kl_weight,):
            require_range("kl_weight", weight, 0.0, MAX_KL_WEIGHT)
        require_integer("chain_steps", self.chain_steps, 1, 100_000)
        require_range("symbol_weight", self.symbol_weight, 0.0, 1e6)
        require_range("condition_share", self.condition_share, 0.0, 1.0)


_PLAIN: dict[Kind, tuple[str, ...]] = {
    "generator": ("kl_weight",),
    "prior": ("chain_steps", "symbol_weight", "condition_share"),
    "decoder": (),
}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _split(change: str) -> tuple[list[str], Any]:
    """Keys and value of NAME=VALUE."""
    name, sign, text = change.partition("=")
    keys = name.strip().split(".")
    require(
        bool(sign) and all(keys) and bool(text.strip()),
        f"--set is {change!r}; write NAME=VALUE, such as prior.width=48",
    )
    return keys, _value(text.strip())


def _put(data: Any, keys: Sequence[str], value: Any, path: str) -> Any:
    """`data` with the value at these keys; unknown keys of objects are the config's to refuse."""
    key, rest = keys[0], keys[1:]
    if isinstance(data, (list, tuple)):
        items = list(cast("list[Any]", data))
        known = key.isdecimal() and int(key) < len(items)
        there = f"the parts 0 to {len(items) - 1}" if items else "no parts"
        require(known, f"{path} has {there}; {key!r} is none of them")
        items[int(key)] = _put(items[int(key)], rest, value, f"{path}.{key}") if rest else value
        return items
    require(isinstance(data, dict), f"{path} is {data!r}, which has no part {key!r}")
    if rest:
        require(key in data, f"{path} has no {key!r}; there are {', '.join(sorted(data))}")
        value = _put(data[key], rest, value, f"{path}.{key}")
    return data | {key: value}


def _levels(prior: PriorConfig, count: Any) -> tuple[float, ...]:
    """cum_sigma of T = `count` levels in the place of a prior's own."""
    from hebm_sample.prior.schedule import log_snr_levels, release_levels

    require_integer("prior.num_levels", count, 1, 500)
    if prior.parametrization == "release":
        return release_levels(count)
    low, *inner, last = prior.levels
    return log_snr_levels(count, low, max([*inner, (low + last) / 2]), last)


def _names(kind: Kind) -> str:
    return ", ".join([*(f"{part}.…" for part in _READ[kind]), *_PLAIN[kind]])


def _one(preset: Preset, kind: Kind, change: str) -> Preset:
    keys, value = _split(change)
    if keys == ["prior", "num_levels"] and kind == "prior":
        return replace(preset, prior=replace(preset.prior, levels=_levels(preset.prior, value)))
    part, rest = keys[0], keys[1:]
    if not rest and part in _PLAIN[kind]:
        plain = {name: getattr(preset, name) for name in _Plain.__dataclass_fields__}
        found = _Plain.from_dict(plain | {part: value}, "preset")
        if part == "kl_weight":
            group_weights(preset.generator, found.kl_weight)
        return replace(preset, **vars(found))
    if not rest or part not in _READ[kind]:
        raise UserInputError(
            f"--set {change}: training a {kind} reads no {'.'.join(keys)!r}; "
            f"there are {_names(kind)}"
        )
    field = f"{kind}_settings" if part == "settings" else part
    data = _put(getattr(preset, field).to_dict(), rest, value, part)
    if part == "settings" and value is not None and rest in (["steps"], ["time_budget"]):
        data |= dict.fromkeys({"steps", "time_budget"} - set(rest))  # one takes the other's place
    if part == "sampling" and rest != ["particles"]:
        # As where a model is called: its particles stay where they can.
        given = LangevinConfig.from_dict(data | {"particles": 1}, part)
        found = replace(
            given, particles=preset.sampling.particles if given.takes_particles() else 1
        )
        return replace(preset, sampling=found)
    return replace(preset, **{field: _PARTS[part].from_dict(data, part)})


def changed(preset: Preset, kind: Kind, changes: Sequence[str]) -> Preset:
    """The preset with these changes, NAME=VALUE each, one after another.

    Arguments:
        preset: What to change.
        kind: Of the run that it is for: what that does not read is refused.

    Raises:
        UserInputError: An unknown name, a value of another type or out of range, or parts that do
            not fit each other.
    """
    for change in changes:
        preset = _one(preset, kind, change)
    return preset


def changed_settings(changes: Sequence[str]) -> set[str]:
    """The fields of the run's settings that the changes name."""
    named = [_split(change)[0] for change in changes]
    return {keys[1] for keys in named if keys[0] == "settings" and len(keys) > 1}
