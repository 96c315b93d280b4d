"""How an image came about, and the lines that make it again.

A step is a call of the pipeline: its settings, and for all but draws and uploads which image it
began from. Its options are read by the command's own parser from the words that the page
shows, and the Python lines are made from these options, so what the page does and what it shows
cannot part.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import click

from hebm_sample.cli.requests.base import SteeringOptions
from hebm_sample.cli.requests.sample import SampleOptions
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import format_seeds

__all__ = [
    "Settings",
    "Draw",
    "Edit",
    "ModelName",
    "Origin",
    "Reconstruct",
    "Step",
    "Upload",
    "Vary",
    "edit_options",
    "file_name",
    "python_lines",
    "safe_name",
    "sample_options",
    "shell_lines",
]

_O = TypeVar("_O", bound=SteeringOptions)


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
    """A visitor's image, by its file's name."""

    name: str


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


Step = Upload | Draw | Vary | Edit | Reconstruct


# Options


def sample_options(step: Draw | Vary) -> SampleOptions:
    """As `hebm-sample` reads them.

    Raises:
        UserInputError: They are wrong.
    """
    from hebm_sample.cli.sample import main

    return _parsed(SampleOptions, main, _sample_words(step))


def edit_options(step: Edit) -> Any:
    """As `hebm-edit edit` reads them; an `EditOptions`."""
    from hebm_sample.cli.edit import edit
    from hebm_sample.cli.requests.edit import EditOptions

    # Of the name only: an image in the page lies in no folder.
    name = _shell(step.source)[1].name
    return _parsed(EditOptions, edit, _edit_words(step, name))


def _parsed(kind: type[_O], command: click.Command, words: list[str]) -> _O:
    try:
        params = command.make_context(command.name, list(words)).params
    except click.ClickException as error:
        raise UserInputError(error.format_message()) from None
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in params.items() if name in known})


def _sample_words(step: Draw | Vary) -> list[str]:
    words = [*step.model.words, "--seeds", format_seeds(step.seeds)]
    if isinstance(step, Vary) and step.sampled_source is not None:
        (seed,) = step.sampled_source.seeds
        words += ["--from-seed", str(seed), "--keep-top", str(step.keep)]
    return words + step.settings.words


def _edit_words(step: Edit, image: str) -> list[str]:
    strength = ["--strength", f"{step.strength:g}", "--method", step.method]
    return [image, *step.model.words, *step.settings.words, *strength]


# Python


def python_lines(origin: Origin) -> str:
    """A program that makes the image, and all that were made with it, and saves them."""
    step = origin.step
    if isinstance(step, Upload):
        return f"# {step.name} is your own image"
    lines = ["from hebm_sample import Pipeline", "", step.model.call, *_python(step)]
    if isinstance(step, Reconstruct):
        return "\n".join([*lines, 'image.save("reconstructed.png")'])
    name = {Draw: "images", Vary: "variations", Edit: "edited"}[type(step)]
    return "\n".join([*lines, f'out.grid().save("{name}.png")'])


def _python(step: Step) -> list[str]:
    """Lines that bind `out`, or for a reconstruction `image`."""
    if isinstance(step, Upload):
        return []
    if isinstance(step, Draw):
        return [f"out = pipe({_arguments(f'seeds={_seeds(step.seeds)}', sample_options(step))})"]
    if isinstance(step, Reconstruct):
        return [
            *_python(step.source.step),
            f"image = pipe.reconstruct([{_image(step.source)}])[0]",
        ]
    if isinstance(step, Vary):
        return _python_vary(step)
    options = edit_options(step)
    how = "" if options.method == "flow" else f", method={options.method!r}"
    first = f"[{_image(step.source)}]"
    last = f"strength={options.strength!r}{how}"
    return [
        *_python(step.source.step),
        f"out = pipe.edit({_arguments(first, options)}, {last})",
    ]


def _python_vary(step: Vary) -> list[str]:
    options, sampled = sample_options(step), step.sampled_source
    source = _latents(step.source if sampled is None else Origin(sampled))
    first = (
        f"{source}, keep={step.keep}, num_variations={len(step.seeds)}, seeds={_seeds(step.seeds)}"
    )
    before = _python(step.source.step if sampled is None else sampled)
    return [*before, f"out = pipe.vary({_arguments(first, options)})"]


def _seeds(seeds: tuple[int, ...]) -> str:
    first, last = seeds[0], seeds[-1]
    consecutive = len(seeds) > 2 and seeds == tuple(range(first, last + 1))
    return f"range({first}, {last + 1})" if consecutive else repr(list(seeds))


def _image(origin: Origin) -> str:
    """An expression for the image, after its step's lines."""
    if isinstance(origin.step, Upload):
        return repr(origin.step.name)
    return "image" if isinstance(origin.step, Reconstruct) else f"out.images[{origin.index}]"


def _latents(origin: Origin) -> str:
    """An expression for what `vary` can begin from, after its step's lines."""
    step, i = origin.step, origin.index
    if isinstance(step, Upload):
        return f"[{step.name!r}]"
    if isinstance(step, Reconstruct):
        return f"[{_image(step.source)}]"  # its latents are those that the source is read as
    alone = isinstance(step, Edit) or len(step.seeds) == 1
    return "out" if alone else f"tuple(group[{i}:{i + 1}] for group in out.latents)"


def _arguments(first: str, options: SteeringOptions) -> str:
    """`first`, condition and settings, as arguments of the pipeline's methods."""
    given = {**options.condition, **{k: v for k, v in options.settings.items() if v is not None}}
    weights = given.get("guidance")
    if weights and len(set(weights.values())) == 1:
        given["guidance"] = next(iter(weights.values()))
    return ", ".join([first, *(f"{name}={value!r}" for name, value in given.items())])


# Shell


def shell_lines(origin: Origin) -> str:
    """The commands that make the image, and all that were made with it."""
    step = origin.step
    if isinstance(step, Upload):
        return f"# {step.name} is your own image"
    if isinstance(step, Draw):  # images that nothing follows go onto one grid
        return _line("hebm-sample", _sample_words(step), "--out", "images.png")
    lines, _ = _shell(origin)
    return "\n".join(lines)


def _shell(origin: Origin) -> tuple[list[str], PurePosixPath]:
    """Lines, and where they put the image."""
    step = origin.step
    if isinstance(step, Upload):
        return [], PurePosixPath(step.name)
    if isinstance(step, Draw) or (isinstance(step, Vary) and step.sampled_source is not None):
        folder = "drawn" if isinstance(step, Draw) else "varied"
        line = _line("hebm-sample", _sample_words(step), "--outdir", folder)
        return [line], PurePosixPath(folder, f"seed{step.seeds[origin.index]:04d}.png")
    if isinstance(step, Edit):
        lines, image = _shell(step.source)
        folder = f"edited{sum('hebm-edit' in line for line in lines) or ''}"
        line = _line("hebm-edit edit", _edit_words(step, str(image)), "--outdir", folder)
        return [*lines, line], PurePosixPath(folder, f"{image.stem}.png")
    what = "reconstructs" if isinstance(step, Reconstruct) else "varies an image without a seed"
    name = file_name(origin)
    return [f"# no command {what}; the page and the lines of Python do: {name}"], PurePosixPath(
        name
    )


def file_name(origin: Origin) -> str:
    """Of the image when it is downloaded."""
    step, name = origin.step, ""
    if isinstance(step, Upload):
        return step.name
    model = safe_name(step.model.dataset)
    if isinstance(step, Draw | Vary):
        name = f"seed{step.seeds[origin.index]:04d}"
        return f"{model}-{name}.png" if isinstance(step, Draw) else f"{model}-varied-{name}.png"
    return f"{model}-{'edited' if isinstance(step, Edit) else 'reconstructed'}.png"


def _line(program: str, words: list[str], *target: str) -> str:
    return f"{program} {shlex.join([*words, *target])}"


def safe_name(path: str) -> str:
    """A file's own name, as it can stand in a line of Python or shell."""
    name = Path(path.replace("\\", "/")).name
    kept = "".join(c for c in name if c.isprintable()).strip(". ").lstrip("-")
    return kept[-80:] or "image.png"
