"""What `hebm-edit` was asked: the typed options of its commands, checked before any work."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from hebm_sample.cli.requests.base import CommandOptions, SteeringOptions, counted, refuse
from hebm_sample.cli.requests.grammar import first_of
from hebm_sample.config import EDIT_GUIDANCE, EDIT_STEPS, DecoderName
from hebm_sample.io.seeds import MAX_SEED

__all__ = [
    "AlignOptions",
    "EditOptions",
    "InpaintOptions",
    "InterpolateOptions",
    "STDIN",
    "ScoreOptions",
    "is_descriptor",
    "name_of",
]

STDIN = "-"


def name_of(source: Path) -> str:
    """What files that are made of an image are called: its name without the ending; of a stream
    what can be said of it.
    """
    if str(source) in (STDIN, "/dev/stdin"):
        return "stdin"
    return f"stream{source.stem}" if is_descriptor(source) else source.stem


def is_descriptor(path: Path) -> bool:
    """Whether it is a stream by its number, such as /dev/fd/63 of a shell's `<(...)`."""
    numbered = re.fullmatch(r"/dev/fd|/proc/(self|\d+)/fd", str(path.parent)) is not None
    return numbered or str(path) == "/dev/stdin"


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """Whether and how the face of a photograph is aligned."""

    align: bool = False
    face: int | None = None
    paste_back: bool = False

    def check_alignment(self, results: int, outdir: Path | None) -> None:
        """`UserInputError` for options that would be ignored, or that photographs do not allow."""
        refuse(self.face is not None and not self.align, "--face needs --align")
        refuse(self.paste_back and not self.align, "--paste-back needs --align")
        refuse(
            self.paste_back and results > 1 and outdir is None,
            f"--paste-back makes {results} photographs, which may have different sizes; give "
            "--outdir",
        )

    @property
    def alignment(self) -> dict[str, Any]:
        """What files say of it; None where it does not apply."""
        return {
            "align": self.align or None,
            "face": self.face,
            "paste_back": self.paste_back or None,
        }


@dataclass(frozen=True, kw_only=True)
class EditOptions(SteeringOptions, AlignOptions):
    """Of `edit`."""

    images: tuple[Path, ...]
    seeds: tuple[int, ...] | None
    groups: tuple[int, ...] | None
    strength: float
    method: Literal["flow", "noise"]

    default_guidance: ClassVar[float] = EDIT_GUIDANCE
    image_names: ClassVar[str] = r".*\.png"  # an edit is named after its image

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_alignment(len(self.images), self.outdir)
        refuse(
            self.method == "flow" and self.sampler not in (None, "flow"),
            f"--sampler {self.sampler} draws noise, and an edit by inversion does not; "
            "leave it out, or add --method noise",
        )
        refuse(
            self.method == "flow" and self.temperature not in (None, 1.0),
            "--temperature scales the noise that is drawn, and an edit by inversion draws none; "
            "leave it out, or add --method noise",
        )
        refuse(
            self.method == "flow" and (self.particles or 1) > 1,
            f"--particles {self.particles} are of chains that draw noise, and an edit by "
            "inversion draws none; leave it out, or add --method noise",
        )
        if self.method == "flow":  # said here, for progress bars and for what an image tells
            object.__setattr__(self, "sampler", "flow")
            object.__setattr__(self, "temperature", None)
            object.__setattr__(self, "steps", self.steps or EDIT_STEPS)
        count, seeds = len(self.images), self.chosen_seeds
        refuse(
            len(seeds) != count,
            f"--seeds names {len(seeds)} for {counted(count)}; give one per image, or the first",
        )
        refuse(seeds[-1] > MAX_SEED, f"no seeds for {counted(count)} follow {seeds[0]}")

    @property
    def facts(self) -> dict[str, Any]:
        """What was asked for beyond the sampler's settings."""
        return {
            "symbols": self.symbols or None,
            "guidance": self.weights or None,
            "strength": self.strength,
            "method": self.method,
            "groups": None if self.groups is None else list(self.groups),
            **self.alignment,
        }

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        """As typed, or N from a single one or 0 on for N images."""
        return first_of(self.seeds or (0,), len(self.images)) or ()

    @property
    def targets(self) -> list[Path]:
        """--outdir DIR/<stem>.png of each image; two of one name are an error."""
        if self.outdir is None:
            return []
        taken: dict[str, Path] = {}
        for image in self.images:
            # Some file systems do not tell A.png from a.png.
            name = name_of(image)
            other = taken.setdefault(name.casefold(), image)
            refuse(
                other is not image,
                f"{other} and {image} would both become {name}.png; "
                "rename one, or edit them apart",
            )
        return [self.outdir / f"{name_of(image)}.png" for image in self.images]


@dataclass(frozen=True, kw_only=True)
class InpaintOptions(SteeringOptions, AlignOptions):
    """Of `inpaint`."""

    image: Path
    mask: Path
    seeds: tuple[int, ...] | None
    strength: float
    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_alignment(len(self.seeds or (0,)), self.outdir)
        object.__setattr__(self, "steps", self.steps or EDIT_STEPS)

    @property
    def facts(self) -> dict[str, Any]:
        """What was asked for beyond the sampler's settings."""
        return {
            "symbols": self.symbols or None,
            "guidance": self.weights or None,
            "strength": self.strength,
            "weight": self.weight,
            **self.alignment,
        }

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        """As typed, or 0."""
        return self.seeds or (0,)

    @property
    def targets(self) -> list[Path]:
        """--outdir DIR/<stem>-seed0007.png of each seed."""
        if self.outdir is None:
            return []
        name = name_of(self.image)
        return [self.outdir / f"{name}-seed{s:04d}.png" for s in self.chosen_seeds]

    @property
    def image_names(self) -> str:
        """A regular expression of `targets`' names."""
        return re.escape(name_of(self.image)) + r"-seed\d{4,}\.png"


@dataclass(frozen=True, kw_only=True)
class InterpolateOptions(CommandOptions, AlignOptions):
    """Of `interpolate`."""

    a: Path
    b: Path
    num_images: int
    decoder: DecoderName | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_alignment(1, None)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(CommandOptions, AlignOptions):
    """Of `score`."""

    images: tuple[Path, ...]
    groups: tuple[int, ...] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_alignment(1, None)
