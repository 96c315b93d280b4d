"""How an image came about: a step is a call of the pipeline, its settings, and which images it
began from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Draw",
    "Edit",
    "Inpaint",
    "Interpolate",
    "Mix",
    "ModelName",
    "Origin",
    "PasteBack",
    "Reconstruct",
    "Settings",
    "Step",
    "Upload",
    "Vary",
    "file_name",
    "safe_name",
    "sources",
    "steps_before",
]


@dataclass(frozen=True)
class ModelName:
    """A model as users type it, and where it is to compute."""

    dataset: str
    resolution: int | None = None
    device: str = "auto"

    @property
    def words(self) -> list[str]:
        """Options of the commands."""
        words = ["--dataset", self.dataset]
        words += [] if self.resolution is None else ["--resolution", str(self.resolution)]
        return words if self.device == "auto" else [*words, "--device", self.device]

    @property
    def call(self) -> str:
        """The line that loads it."""
        more = "" if self.resolution is None else f", resolution={self.resolution}"
        more += "" if self.device == "auto" else f", device={self.device!r}"
        return f"pipe = Pipeline.from_pretrained({self.dataset!r}{more})"


@dataclass(frozen=True)
class Settings:
    """The condition, and how images are sampled.

    Arguments:
        symbols: Variable to target: `yes`, `~cat`, `cat,dog`.
        guidance: One weight per variable of the condition; those left out have the command's
            default.
        sampler, steps, temperature: As of `LangevinConfig`; None is the model's own.
    """

    symbols: Mapping[str, str]
    guidance: Mapping[str, float]
    sampler: str | None = None
    steps: int | None = None
    temperature: float | None = None

    @property
    def words(self) -> list[str]:
        """Options of the commands."""
        words: list[str] = []
        for name, target in self.symbols.items():
            attribute = name if target == "yes" else f"{name}={target}"
            words += ["--class", target] if name == "class" else ["--attr", attribute]
        weights = {
            name: f"{self.guidance[name]:g}" for name in self.symbols if name in self.guidance
        }
        if len(weights) == len(self.symbols) and len(set(weights.values())) == 1:
            words += ["--guidance", *set(weights.values())]
        else:
            words += [
                w for name, weight in weights.items() for w in ("--guidance", f"{name}={weight}")
            ]
        settings = {"sampler": self.sampler, "steps": self.steps}
        settings["temperature"] = None if self.temperature is None else f"{self.temperature:g}"
        given = {name: value for name, value in settings.items() if value is not None}
        return words + [w for name, value in given.items() for w in (f"--{name}", str(value))]


@dataclass(frozen=True)
class Origin:
    """The image that a step begins from: the `index`-th of another step's."""

    step: "Step"
    index: int = 0


@dataclass(frozen=True)
class Upload:
    """A visitor's image, by its file's name: its middle square, or its face as a model has it."""

    name: str
    aligned_to: ModelName | None = None


@dataclass(frozen=True)
class Draw:
    """Images of seeds."""

    model: ModelName
    settings: Settings
    seeds: tuple[int, ...]

    def alone(self, index: int) -> "Draw":
        """The draw of one of its seeds only."""
        return Draw(self.model, self.settings, (self.seeds[index],))


@dataclass(frozen=True)
class Vary:
    """Variations of an image that keep its top groups. Those of a sample have its settings, and
    begin from its seed sampled alone, as `hebm-sample --from-seed` does.
    """

    model: ModelName
    settings: Settings
    seeds: tuple[int, ...]
    keep: int
    source: Origin

    @property
    def sampled_source(self) -> Draw | None:
        """The source sampled alone; None if it was not sampled from a seed."""
        step = self.source.step
        return step.alone(self.source.index) if isinstance(step, Draw) else None


@dataclass(frozen=True)
class Edit:
    """An image led to a condition."""

    model: ModelName
    settings: Settings
    strength: float
    method: str
    source: Origin


@dataclass(frozen=True)
class Reconstruct:
    """What the model can say about an image."""

    model: ModelName
    source: Origin


@dataclass(frozen=True)
class Inpaint:
    """An image filled in where a mask is white, once for each seed."""

    model: ModelName
    settings: Settings
    seeds: tuple[int, ...]
    strength: float
    source: Origin

    @property
    def mask_name(self) -> str:
        """Of the mask's file: each of several in a row has its own."""
        before = steps_before(self)
        number = sum(isinstance(step, Inpaint) for step in before)
        uploads = [step.name for step in before if isinstance(step, Upload)]
        while (name := f"mask{number or ''}.png") in uploads:
            number += 1
        return name


@dataclass(frozen=True)
class Mix:
    """The top `cut` groups of one image with the others of another."""

    model: ModelName
    coarse: Origin
    fine: Origin
    cut: int


@dataclass(frozen=True)
class Interpolate:
    """`count` images from one to another, both included, on great circles in the latents."""

    model: ModelName
    first: Origin
    second: Origin
    count: int


@dataclass(frozen=True)
class PasteBack:
    """An image in the place of the face in the photograph that it began from."""

    model: ModelName
    photo: Upload
    source: Origin


Step = Upload | Draw | Vary | Edit | Reconstruct | Inpaint | Mix | Interpolate | PasteBack


def sources(step: Step) -> tuple[Origin, ...]:
    """What a step begins from."""
    if isinstance(step, Upload | Draw):
        return ()
    if isinstance(step, Mix):
        return (step.coarse, step.fine)
    return (step.first, step.second) if isinstance(step, Interpolate) else (step.source,)


def steps_before(step: Step) -> list[Step]:
    """All that a step comes from, the first one first."""
    found: list[Step] = []
    for source in sources(step):
        found += [*steps_before(source.step), source.step]
    return found


# Names of files


def file_name(origin: Origin) -> str:
    """Of the image when it is saved."""
    step, i = origin.step, origin.index
    if isinstance(step, Upload):
        return f"{_stem(step.name)}-{'face' if step.aligned_to else 'square'}.png"
    if isinstance(step, PasteBack):
        return f"{_stem(step.photo.name)}-pasted.png"
    what = {
        Draw: "",
        Vary: "varied-",
        Inpaint: "filled-",
        Edit: "edited",
        Reconstruct: "reconstructed",
        Mix: "mixed",
        Interpolate: f"between-{i + 1:02d}",
    }[type(step)]
    if isinstance(step, Draw | Vary | Inpaint):
        what += f"seed{step.seeds[i]:04d}"
    return f"{safe_name(step.model.dataset)}-{what}.png"


def _stem(name: str) -> str:
    """A file's name without its ending."""
    return Path(name).stem


def safe_name(path: str) -> str:
    """A file's own name, as it can stand in a line of Python or shell."""
    name = Path(path.replace("\\", "/")).name
    kept = "".join(c for c in name if c.isprintable()).strip(". ")
    return kept[-80:].lstrip("-. ") or "image.png"
