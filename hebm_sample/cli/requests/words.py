"""The line that makes a file again, which the file itself tells: options back to words.

Files are named without their folders, so that an image says nothing of the machine it was made on;
whatever has a default is written out, so that a later default changes nothing.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hebm_sample.cli.requests.base import CommandOptions, SteeringOptions
from hebm_sample.cli.requests.edit import (
    STDIN,
    AlignOptions,
    EditOptions,
    InpaintOptions,
    InterpolateOptions,
    is_descriptor,
)
from hebm_sample.cli.requests.sample import SampleOptions
from hebm_sample.io.seeds import format_seeds

__all__ = ["edit_line", "inpaint_line", "interpolate_line", "sample_line"]

Facts = Mapping[str, Any]


def sample_line(
    options: SampleOptions, facts: Facts, seeds: Sequence[int], out: Path | None
) -> str:
    """The `hebm-sample` of a grid of `seeds` at `out`, or of a seed's own file.

    Arguments:
        facts: Of the images' `Provenance`, from which the sampler's defaults come.
    """
    words = [*_model(options, facts), *_layout(options, seeds), *_condition(options)]
    words += ["--gaussian-prior"] if options.gaussian_prior else []
    words += [*_given("--best-of", options.best_of), *_given("--rank-by", options.ranking)]
    words += [*_sampler(facts), *_given("--seconds", options.seconds)]
    words += ["--compile"] if options.compiled else []
    words += [*_given("--columns", options.columns), *_given("--scale", options.scale)]
    return _line("hebm-sample", words, *_target(out, "samples"))


def edit_line(
    options: EditOptions,
    facts: Facts,
    images: Sequence[Path],
    seeds: Sequence[int],
    out: Path | None,
) -> str:
    """The `hebm-edit edit` of a grid at `out`, or of an image's own file."""
    words = [*_names(images), *_model(options, facts), "--seeds", format_seeds(seeds)]
    groups = None if options.groups is None else format_seeds(options.groups)
    words += [*_given("--groups", groups), "--strength", repr(options.strength)]
    words += ["--method", options.method, *_condition(options), *_sampler(facts)]
    words += _alignment(options)
    return _line("hebm-edit edit", words, *_target(out, "edited"))


def inpaint_line(
    options: InpaintOptions, facts: Facts, seeds: Sequence[int], out: Path | None
) -> str:
    """The `hebm-edit inpaint` of a grid at `out`, or of a seed's own file."""
    image, mask = _names([options.image, options.mask])
    words = [image, "--mask", mask, *_model(options, facts)]
    words += ["--seeds", format_seeds(seeds), "--strength", repr(options.strength)]
    words += ["--weight", repr(options.weight), *_condition(options), *_sampler(facts)]
    words += _alignment(options)
    return _line("hebm-edit inpaint", words, *_target(out, "inpainted"))


def interpolate_line(options: InterpolateOptions, facts: Facts, out: Path) -> str:
    """The `hebm-edit interpolate` of a row."""
    words = [*_names([options.a, options.b]), *_model(options, facts)]
    words += ["-n", str(options.num_images), *_given("--decoder", facts["decoder"])]
    words += _alignment(options)
    return _line("hebm-edit interpolate", words, *_target(out))


def _line(program: str, words: Sequence[str], *target: str) -> str:
    return f"{program} {shlex.join([*words, *target])}"


def _name(path: Path) -> str:
    """A file without its folder; the standard input for what came through a descriptor."""
    if str(path) == STDIN or is_descriptor(path):
        return STDIN
    return f"./{path.name}" if path.name.startswith("-") else path.name


def _names(paths: Sequence[Path]) -> list[str]:
    """Of several files, whose folders tell them apart where their names do not."""
    names = [_name(path) for path in paths]
    known = {name for name, path in zip(names, paths, strict=True) if _count(path, paths) > 1}
    return [str(path) if name in known else name for name, path in zip(names, paths, strict=True)]


def _count(path: Path, paths: Sequence[Path]) -> int:
    """How many files have this one's name."""
    return len({other.absolute() for other in paths if other.name == path.name})


def _target(out: Path | None, folder: str = "") -> list[str]:
    return ["--outdir", folder] if out is None else ["--out", out.name]


def _given(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]


def _model(options: CommandOptions, facts: Facts) -> list[str]:
    from hebm_sample.hub.resolve import is_folder

    name = options.dataset or ""
    if is_folder(name):
        name = f"./{os.path.basename(os.path.abspath(name))}"
    words = ["--dataset", name, "--resolution", str(facts["resolution"])]
    words += _given("--revision", facts["revision"])
    return words if options.dtype == "float32" else [*words, "--dtype", options.dtype]


def _layout(options: SampleOptions, seeds: Sequence[int]) -> list[str]:
    listed, kept = ["--seeds", format_seeds(seeds)], _given("--keep-top", options.keep_top)
    if options.layout == "variations":
        return ["--from-seed", str(options.from_seed), *kept, *listed]
    if options.layout == "mix":
        return ["--mix", ":".join(map(str, options.chosen_seeds)), *kept]
    if options.layout == "layers":
        seed, columns = options.chosen_seeds[0], options.layer_columns
        return ["--layers", "--seeds", str(seed), "-n", str(columns)]
    return ["--trajectory", *listed] if options.layout == "trajectory" else listed


def _alignment(options: AlignOptions) -> list[str]:
    words = [*(["--align"] if options.align else []), *_given("--face", options.face)]
    return [*words, "--paste-back"] if options.paste_back else words


def _condition(options: SteeringOptions) -> list[str]:
    words: list[str] = []
    for name, target in options.symbols.items():
        value = target if isinstance(target, str) else ",".join(target)
        words += ["--class", value] if name == "class" else ["--attr", f"{name}={value}"]
    for name, weight in options.weights.items():
        words += ["--guidance", f"{name}={weight!r}"]
    return words


def _sampler(facts: Facts) -> list[str]:
    """The settings and the decoder as they were, the model's own where none were typed."""
    temperature = facts["temperature"]
    if isinstance(temperature, (list, tuple)):
        temperature = ",".join(map(str, temperature))
    words = _given("--sampler", facts["sampler"]) + _given("--steps", facts["steps"])
    words += _given("--temperature", temperature)
    words += _given("--particles", facts.get("particles"))
    return words + _given("--decoder", facts["decoder"])
