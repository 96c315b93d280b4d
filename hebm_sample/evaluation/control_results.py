"""What `evaluate --control` is to measure, and what it found, as text and as JSON.

share = hits / n,    standard error = sqrt(share (1 - share) / n)
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hebm_sample import __version__
from hebm_sample.config import require_integer, require_range
from hebm_sample.evaluation.classifiers import Wish
from hebm_sample.io.seeds import MAX_SEEDS
from hebm_sample.pipeline.editing import EditMethod

__all__ = ["Asked", "Control", "ControlPlan", "Edit", "Layers", "Share", "Variable"]

MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class ControlPlan:
    """What to measure.

    Arguments:
        num_images: Samples a value and guidance.
        guidance: Weights; 0 stands for samples of which nothing was asked, and is always drawn.
        attributes: Variables to ask for; None for all that have labels.
        combinations: Values to ask for together.
        edit: What to change in held-out images that lack it; None for no edits.
        edit_images: How many, at most.
        strength, edit_guidance, edit_method: Of `Pipeline.edit`.
        held_out: Held-out images to judge and reconstruct, at most.
        layer_images: Samples to vary layer by layer; 0 for none.
        variations: Of each and each cut.
    """

    num_images: int = 100
    guidance: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    attributes: tuple[str, ...] | None = None
    combinations: tuple[Wish, ...] = ()
    edit: Wish | None = None
    edit_images: int = 200
    strength: float = 0.77
    edit_guidance: float = 32.0
    edit_method: EditMethod = "flow"
    held_out: int = 2000
    layer_images: int = 4
    variations: int = 8

    def __post_init__(self) -> None:
        for name in ("num_images", "edit_images", "held_out"):
            require_integer(name, getattr(self, name), 1, MAX_SEEDS)
        require_integer("layer_images", self.layer_images, 0, MAX_SEEDS)
        require_integer("variations", self.variations, 2, MAX_SEEDS)
        for weight in self.guidance:
            require_range("guidance", weight, 0.0, MAX_GUIDANCE)


@dataclass(frozen=True)
class Share:
    """Of `count` images the share that is so, and its binomial standard error; nan of none."""

    share: float
    error: float
    count: int

    @classmethod
    def of(cls, hits: np.ndarray | Sequence[bool]) -> "Share":
        """From one truth value an image."""
        found = np.asarray(hits, dtype=bool)
        if not found.size:
            return cls(math.nan, math.nan, 0)
        share = float(found.mean())
        return cls(share, math.sqrt(share * (1 - share) / found.size), found.size)

    @classmethod
    def pooled(cls, shares: "Sequence[Share]") -> "Share":
        """Of several sets of images as one set."""
        hits = sum(round(s.share * s.count) for s in shares if s.count)
        count = sum(s.count for s in shares)
        return cls.of(np.arange(count) < hits)

    def __str__(self) -> str:
        return f"{self.share:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Asked:
    """Values asked for together, and how often the judge names them all.

    Arguments:
        symbols: Variable to value.
        labelled: Their share of the training rows whose labels tell.
        found: By guidance, as text; "0" is of samples of which nothing was asked.
        real, reconstructed: The same of held-out images that have those labels: the ceiling.
    """

    symbols: dict[str, str]
    labelled: Share
    found: dict[str, Share]
    real: Share
    reconstructed: Share

    @property
    def name(self) -> str:
        """As it is typed."""
        return ",".join(f"{name}={value}" for name, value in self.symbols.items())

    def row(self) -> str:
        """A line of the table."""
        shares = (self.labelled, *self.found.values(), self.real, self.reconstructed)
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
        asked: The values that were asked for, each alone.
        found: Shares over all of them, by guidance.
        real, reconstructed: The judge's accuracies on held-out images and on their
            reconstructions, as `metrics.attribute_classifier.accuracies` gives them; empty
            without labels.
    """

    column: str
    values: int
    asked: list[Asked]
    found: dict[str, Share]
    real: dict[str, Any]
    reconstructed: dict[str, Any]

    def lines(self, name: str) -> list[str]:
        """Part of the table."""
        lines = []
        if len(self.asked) > 1:
            spaces = " " * 16
            over_all = "".join(f"{share!s:>16}" for share in self.found.values())
            lines = [a.row() for a in self.asked] + [f"  {'all':36}{spaces}{over_all}"]
        if self.real and self.reconstructed:
            ceiling = self.reconstructed["accuracy"]
            lines.append(
                f"  {name}: judge's accuracy {self.real['accuracy']:.3f} on "
                f"{self.real['count']} real images, {ceiling:.3f} on their reconstructions "
                f"(balanced {self.real['balanced_accuracy']:.3f}, "
                f"{self.reconstructed['balanced_accuracy']:.3f})"
            )
            if len(self.asked) > 1 and ceiling > 0:
                ratios = ", ".join(f"{g}: {s.share / ceiling:.3f}" for g, s in self.found.items())
                lines.append(
                    f"  {name}: found / accuracy on reconstructions, by guidance {ratios}"
                )
        return lines


@dataclass(frozen=True)
class Edit:
    """Held-out images that lack what is asked for by their labels, edited.

    Arguments:
        symbols: What was asked for.
        images: How many were edited.
        strength, guidance, method: Of `edit`.
        flipped: Of those in whose reconstruction the judge does not find it, the share in whose
            edited version it does.
        others: Mean absolute change of the judge's probabilities for all other columns, against
            the image itself, of "reconstruction" and "edit".
        upper, whole: Mean absolute change of the pixels, on 0 to 255, in the upper half and in the
            whole, likewise.
    """

    symbols: dict[str, str]
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
        asked = ",".join(f"{k}={v}" for k, v in self.symbols.items())
        rows = {
            "other scores": (self.others, 4),
            "upper half's pixels": (self.upper, 2),
            "all pixels": (self.whole, 2),
        }
        return [
            f"Edit {asked} on {self.images} held-out images without it, strength "
            f"{self.strength:g}, guidance {self.guidance:g}, by {self.method}:",
            f"  flipped {self.flipped} of {self.flipped.count} not called so when reconstructed",
            f"  {'mean absolute change of':38}{'reconstruction':>16}{'edit':>16}",
            *(
                f"  {name:38}{x['reconstruction']:16.{digits}f}{x['edit']:16.{digits}f}"
                for name, (x, digits) in rows.items()
            ),
        ]


@dataclass(frozen=True)
class Layers:
    """Mean distance in the judge's features between variations that keep the top k groups.

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
            f"images, by groups kept {found}"
        )


@dataclass(frozen=True)
class Control:
    """What `control` measured.

    Arguments:
        model: The model's name.
        sampling: Its sampler's settings in this measurement.
        judge: What is known of the judge: recipe, data, accuracies on held-out images.
        num_images: Samples a value and guidance.
        unconditional: Samples of which nothing was asked.
        held_out: Held-out images that were judged and reconstructed.
        variables: By name.
        combinations: Values of several variables together.
        edit, layers: None if not measured.
        seconds: The whole measurement.
    """

    model: str
    sampling: dict[str, Any]
    judge: dict[str, Any]
    num_images: int
    unconditional: int
    held_out: int
    variables: dict[str, Variable]
    combinations: list[Asked]
    edit: Edit | None
    layers: Layers | None
    seconds: float
    version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for a figure that is not a number."""
        return _finite(asdict(self))

    def table(self) -> str:
        """The figures as text."""
        how = f"{self.sampling['sampler']}, {self.sampling['steps']} gradients"
        columns = self.judge.get("columns", {})
        tested = [f"{name} {x['accuracy']:.3f} of {x['count']}" for name, x in columns.items()]
        several = {k: v for k, v in self.variables.items() if len(v.asked) > 1}
        lines = [
            f"{self.model}: {how}, {self.num_images} samples a value and guidance, "
            f"{self.unconditional} of which nothing was asked (guidance 0), {self.seconds:.0f} s",
            *textwrap.wrap("Judge's accuracy on held-out images: " + ", ".join(tested), 120),
            "Shares in which the judge names what was asked, ± one standard error:",
        ]
        guidance = list(next(iter(self.variables.values())).found) if self.variables else []
        for name, variable in several.items():
            lines += [_header(name, guidance), *variable.lines(name)]
        single = {k: v for k, v in self.variables.items() if k not in several}
        if single:
            lines.append(_header("rarer value", guidance))
            lines += [v.asked[0].row() for v in single.values()]
            lines += [line for name, v in single.items() for line in v.lines(name)]
        if self.combinations:
            guidance = list(self.combinations[0].found)
            lines += [_header("together", guidance), *(c.row() for c in self.combinations)]
        lines += self.edit.lines() if self.edit is not None else []
        lines += [self.layers.line()] if self.layers is not None else []
        return "\n".join(lines)


def _finite(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
