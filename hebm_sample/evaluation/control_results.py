"""What `hebm-eval control` is to measure, and what it measured, as text and as JSON.

share = hits / n,    standard error = sqrt(share (1 - share) / n)

Over several values, whose samples share their seeds, the error is that of the seeds' means.

An attribute *steers* if at guidance `STEERING_GUIDANCE` the conditional accuracy has come at least
`STEERING_THRESHOLD` of the way from the unconditional rate to what the classifier finds in real
images of the value; otherwise it steers weakly.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from hebm_sample import __version__
from hebm_sample.config import (
    EDIT_GUIDANCE,
    LangevinConfig,
    require,
    require_integer,
    require_range,
)
from hebm_sample.evaluation.classifiers import TargetValues
from hebm_sample.io.seeds import MAX_SEEDS
from hebm_sample.metrics.statistics import error_at_an_end
from hebm_sample.pipeline.editing import EditMethod

__all__ = [
    "STEERING_GUIDANCE",
    "STEERING_THRESHOLD",
    "ConditionRates",
    "Control",
    "ControlPlan",
    "Edit",
    "Layers",
    "Share",
    "Variable",
    "steering",
]

STEERING_GUIDANCE = 4.0
STEERING_THRESHOLD = 0.5
MAX_GUIDANCE = 100.0
MAX_WEIGHTS = 100


@dataclass(frozen=True)
class ControlPlan:
    """What to measure.

    Arguments:
        num_images: Samples a value and guidance.
        guidance: Weights; 0 stands for unconditional samples, which are always drawn.
        attributes: Variables to ask for; None for all that have labels.
        combinations: Values to ask for together.
        edit: What to change in held-out images that lack it; None for no edits.
        edit_images: How many, at most.
        strength, edit_guidance, edit_method: Of `Pipeline.edit`.
        held_out: Held-out images to classify and reconstruct, at most.
        layer_images: Samples to vary layer by layer; 0 for none.
        variations: Of each and each cut.
    """

    num_images: int = 100
    guidance: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    attributes: tuple[str, ...] | None = None
    combinations: tuple[TargetValues, ...] = ()
    edit: TargetValues | None = None
    edit_images: int = 200
    strength: float = 0.77
    edit_guidance: float = EDIT_GUIDANCE
    edit_method: EditMethod = "flow"
    held_out: int = 2000
    layer_images: int = 4
    variations: int = 8

    def __post_init__(self) -> None:
        for name in ("num_images", "edit_images", "held_out"):
            require_integer(name, getattr(self, name), 1, MAX_SEEDS)
        require_integer("layer_images", self.layer_images, 0, MAX_SEEDS)
        require_integer("variations", self.variations, 2, MAX_SEEDS)
        require(
            1 <= len(self.guidance) <= MAX_WEIGHTS,
            f"guidance has {len(self.guidance)} weights; it can be 1 to {MAX_WEIGHTS}",
        )
        for weight in self.guidance:
            require_range("guidance", weight, 0.0, MAX_GUIDANCE)


@dataclass(frozen=True)
class Share:
    """Of `count` images the share that is so, and its standard error; nan of none."""

    share: float
    error: float
    count: int

    @classmethod
    def of(cls, hits: np.ndarray | Sequence[bool]) -> "Share":
        """From one truth value per image, all independent: the binomial error; of none or all of
        them, where that is 0, `error_at_an_end`.
        """
        found = np.asarray(hits, dtype=bool)
        if not found.size:
            return cls(math.nan, math.nan, 0)
        share = float(found.mean())
        binomial = math.sqrt(share * (1 - share) / found.size)
        return cls(share, binomial or error_at_an_end(found.size), found.size)

    @classmethod
    def clustered(cls, hits: np.ndarray) -> "Share":
        """From truth values (N, K) whose rows are independent and whose columns are not, such as K
        conditions of one seed: the error is that of the mean of the rows' means.
        """
        means = np.asarray(hits, dtype=np.float64).mean(axis=1)
        spread = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
        if means.mean() in (0.0, 1.0):
            spread = error_at_an_end(len(means))
        return cls(float(means.mean()), float(spread), hits.size)

    def __str__(self) -> str:
        return f"{self.share:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class ConditionRates:
    """Target values asked for together, and how often the classifier predicts them all.

    Arguments:
        condition: Variable to target value.
        labelled: Their share of the training rows whose labels tell.
        by_guidance: By guidance, as text: the conditional accuracy; "0" is the unconditional rate.
        real, reconstructed: The same of held-out images that have those labels; the latter is the
            reconstruction upper bound.
    """

    condition: dict[str, str] = field(metadata={"key": "symbols"})  # its name in files
    labelled: Share
    by_guidance: dict[str, Share] = field(metadata={"key": "found"})  # its name in files
    real: Share
    reconstructed: Share

    @property
    def name(self) -> str:
        """As it is typed."""
        return ",".join(f"{name}={value}" for name, value in self.condition.items())

    def row(self) -> str:
        """A line of the table."""
        shares = (self.labelled, *self.by_guidance.values(), self.real, self.reconstructed)
        return f"  {self.name:36}" + "".join(f"{x!s:>16}" for x in shares)


def _header(first: str, guidance: Sequence[str]) -> str:
    names = ["labels", *(f"guidance {g}" for g in guidance), "real", "reconstructed"]
    return f"{first:38}" + "".join(f"{name:>16}" for name in names)


@dataclass(frozen=True)
class Variable:
    """One variable of the symbol table.

    Arguments:
        column: Of the data, that has its labels.
        values: How many it can take.
        conditions: The values that were asked for, each alone.
        by_guidance: Rates over all of them, by guidance. Without a condition their expectation is
            one over their number, whatever the model does; the samples are others for each value,
            so that the error is that of such a rate. With a condition values share their seeds,
            and the error knows that.
        real, reconstructed: The classifier's accuracies on held-out images and on their
            reconstructions, as `metrics.attribute_classifier.accuracies` gives them; empty
            without labels.
    """

    column: str
    values: int
    conditions: list[ConditionRates] = field(metadata={"key": "asked"})  # its name in files
    by_guidance: dict[str, Share] = field(metadata={"key": "found"})  # its name in files
    real: dict[str, Any]
    reconstructed: dict[str, Any]

    def lines(self, name: str) -> list[str]:
        """Part of the table."""
        lines = []
        if len(self.conditions) > 1:
            spaces = " " * 16
            over_all = "".join(f"{share!s:>16}" for share in self.by_guidance.values())
            lines = [c.row() for c in self.conditions] + [f"  {'all':36}{spaces}{over_all}"]
        if self.real and self.reconstructed:
            lines += self._accuracies(name)
        return lines

    def _accuracies(self, name: str) -> list[str]:
        bound = self.reconstructed["accuracy"]
        lines = [
            f"  {name}: the classifier's accuracy {self.real['accuracy']:.3f} on "
            f"{self.real['count']} real images, {bound:.3f} on their reconstructions "
            f"(balanced {self.real['balanced_accuracy']:.3f}, "
            f"{self.reconstructed['balanced_accuracy']:.3f})"
        ]
        if len(self.conditions) > 1 and bound > 0:
            found = self.by_guidance.items()
            ratios = ", ".join(f"{g}: {s.share / bound:.3f}" for g, s in found)
            lines.append(
                f"  {name}: share of the reconstruction upper bound, by guidance {ratios}"
            )
        return lines


@dataclass(frozen=True)
class Edit:
    """Held-out images that lack the target values by their labels, edited.

    Arguments:
        condition: Variable to target value.
        images: How many were edited.
        strength, guidance, method: Of `edit`.
        flipped: Of those for whose reconstruction the classifier does not predict the target
            values, the share for whose edited version it does.
        others: Mean absolute change of the predicted probabilities of all other columns, against
            the image itself, of "reconstruction" and "edit".
        upper, whole: Mean absolute change of the pixels, on 0 to 255, in the upper half and in the
            whole, likewise.
    """

    condition: dict[str, str] = field(metadata={"key": "symbols"})  # its name in files
    images: int
    strength: float
    guidance: float
    flipped: Share
    others: dict[str, float]
    upper: dict[str, float]
    whole: dict[str, float]
    method: EditMethod = "flow"

    def lines(self) -> list[str]:
        """Part of the table."""
        target = ",".join(f"{k}={v}" for k, v in self.condition.items())
        rows = {
            "other probabilities": (self.others, 4),
            "upper half's pixels": (self.upper, 2),
            "all pixels": (self.whole, 2),
        }
        return [
            f"Edit {target} on {self.images} held-out images without it, strength "
            f"{self.strength:g}, guidance {self.guidance:g}, by {self.method}:",
            f"  flipped {self.flipped} of {self.flipped.count} not predicted so when "
            "reconstructed",
            f"  {'mean absolute change of':38}{'reconstruction':>16}{'edit':>16}",
            *(
                f"  {name:38}{x['reconstruction']:16.{digits}f}{x['edit']:16.{digits}f}"
                for name, (x, digits) in rows.items()
            ),
        ]


@dataclass(frozen=True)
class Layers:
    """Mean distance in the classifier's features between variations that clamp the top k groups.

    Arguments:
        images: That were varied.
        variations: Of each.
        distances: For k = 0 ... L - 1.
    """

    images: int
    variations: int
    distances: list[float]

    def line(self) -> str:
        """Part of the table."""
        found = ", ".join(f"{k}: {d:.3f}" for k, d in enumerate(self.distances))
        return (
            f"Layers: mean feature distance of {self.variations} variations of {self.images} "
            f"images, by groups clamped {found}"
        )


@dataclass(frozen=True)
class Control:
    """What `control` measured.

    Arguments:
        model: The model's name.
        sampling: Its sampler's settings in this measurement.
        classifier: What is known of the attribute classifier: recipe, data, accuracies on
            held-out images.
        num_images: Samples a value and guidance.
        unconditional: Samples without a condition.
        held_out: Held-out images that were classified and reconstructed.
        variables: By name.
        combinations: Values of several variables together.
        edit, layers: None if not measured.
        seconds: The whole measurement.
    """

    model: str
    sampling: dict[str, Any]
    classifier: dict[str, Any] = field(metadata={"key": "judge"})  # its name in files
    num_images: int
    unconditional: int
    held_out: int
    variables: dict[str, Variable]
    combinations: list[ConditionRates]
    edit: Edit | None
    layers: Layers | None
    seconds: float
    version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for a figure that is not a number."""
        return _plain(self)

    def table(self) -> str:
        """The figures as text."""
        lines = self._title()
        several = {k: v for k, v in self.variables.items() if len(v.conditions) > 1}
        single = {k: v for k, v in self.variables.items() if k not in several}
        guidance = list(next(iter(self.variables.values())).by_guidance) if self.variables else []
        for name, variable in several.items():
            lines += [_header(name, guidance), *variable.lines(name)]
        if single:
            lines.append(_header("rarer value", guidance))
            lines += [v.conditions[0].row() for v in single.values()]
            lines += [line for name, v in single.items() for line in v.lines(name)]
        if self.combinations:
            guidance = list(self.combinations[0].by_guidance)
            lines += [_header("together", guidance), *(c.row() for c in self.combinations)]
        lines += self.edit.lines() if self.edit is not None else []
        lines += [self.layers.line()] if self.layers is not None else []
        return "\n".join([*lines, *self._steering()])

    def _steering(self) -> list[str]:
        rule = (
            f"{STEERING_THRESHOLD:g} of the way from the unconditional rate to real images at "
            f"guidance {STEERING_GUIDANCE:g}"
        )
        names = {True: "Steer", False: "Steer weakly"}
        found = steering(self.to_dict())
        lines = []
        for strong, title in names.items():
            those = [name for name, reached in found.items() if reached is strong]
            lines += [f"{title} ({rule}): {', '.join(those)}"] if those else []
        return lines

    def _title(self) -> list[str]:
        how = LangevinConfig.from_dict(self.sampling).words
        columns = self.classifier.get("columns", {})
        tested = [f"{name} {x['accuracy']:.3f} of {x['count']}" for name, x in columns.items()]
        accuracy = "The attribute classifier's accuracy on held-out images: " + ", ".join(tested)
        return [
            f"{self.model}: {how}, {self.num_images} samples a value and guidance, "
            f"{self.unconditional} unconditional (guidance 0), {self.seconds:.0f} s",
            *textwrap.wrap(accuracy, 120),
            "Shares for which the classifier predicts the target values, ± one standard error:",
        ]


def steering(measured: Mapping[str, Any]) -> dict[str, bool]:
    """Which variables steer, by the module's rule; without those that were not measured at its
    guidance, and those that cannot be told because real images say no more than unconditional
    samples.

    Arguments:
        measured: A `Control` as it stands in files (`Control.to_dict`).
    """
    found = {}
    for name, variable in measured["variables"].items():
        several = len(variable["asked"]) > 1
        rates = variable["found"] if several else variable["asked"][0]["found"]
        real = (
            variable["real"].get("accuracy") if several else variable["asked"][0]["real"]["share"]
        )
        at, base = (rates.get(f"{w:g}", {}).get("share") for w in (STEERING_GUIDANCE, 0.0))
        if None not in (real, at, base) and real > base:
            found[name] = (at - base) / (real - base) >= STEERING_THRESHOLD
    return found


def _plain(value: Any) -> Any:
    """Result objects as dictionaries under the keys of result files; JSON has no nan."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            f.metadata.get("key", f.name): _plain(getattr(value, f.name)) for f in fields(value)
        }
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
