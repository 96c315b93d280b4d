"""The lines of Python and shell that make an image again."""

import shlex
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from hebm_sample.cli.requests.base import SteeringOptions
from hebm_sample.demo.options import (
    edit_options,
    edit_words,
    inpaint_options,
    inpaint_words,
    interpolate_words,
    mix_words,
    sample_options,
    sample_words,
)
from hebm_sample.demo.steps import (
    Draw,
    Edit,
    Inpaint,
    Interpolate,
    Mix,
    Origin,
    PasteBack,
    Reconstruct,
    Step,
    Upload,
    Vary,
    file_name,
)

if TYPE_CHECKING:
    from hebm_sample.cli.requests.edit import EditOptions, InpaintOptions

__all__ = ["named_edit", "named_inpaint", "python_lines", "shell_lines"]


# Options, with the name that the shell's lines give the image. Of the name only: an image in the
# page lies in no folder.


def named_edit(step: Edit) -> "EditOptions":
    """Of an edit."""
    return edit_options(step, _shell(step.source)[1].name)


def named_inpaint(step: Inpaint) -> "InpaintOptions":
    """Of an inpainting."""
    return inpaint_options(step, _shell(step.source)[1].name)


# Python


_SINGLE = {Upload: "face", Reconstruct: "reconstructed", PasteBack: "photograph"}
_GRID = {
    Draw: "images",
    Vary: "variations",
    Edit: "edited",
    Inpaint: "inpainted",
    Mix: "mixed",
    Interpolate: "interpolated",
}


def python_lines(origin: Origin) -> str:
    """A program that makes the image, and all that were made with it, and saves them."""
    step = origin.step
    model = step.aligned_to if isinstance(step, Upload) else step.model
    if model is None:
        return f"# {file_name(origin)} is the middle square of your own image"
    lines = ["from hebm_sample import Pipeline", "", model.call, *_python(step)]
    if isinstance(step, Upload):
        lines.append(f"image = {_image(origin)}")
    if type(step) in _SINGLE:
        return "\n".join([*lines, f'image.save("{_SINGLE[type(step)]}.png")'])
    return "\n".join([*lines, f'out.grid().save("{_GRID[type(step)]}.png")'])


def _python(step: Step) -> list[str]:
    """Lines that bind `out`, or `image` for what is one image and no samples."""
    if isinstance(step, Upload):
        return []
    if isinstance(step, Draw):
        return [f"out = pipe({_arguments(f'seeds={_seeds(step.seeds)}', sample_options(step))})"]
    if isinstance(step, Vary):
        return _python_vary(step)
    if isinstance(step, Mix):
        named = _python_pair("coarse", _latents(step.coarse), "fine", _latents(step.fine), step)
        return [*named, f"out = pipe.mix(coarse, fine, {step.cut})"]
    if isinstance(step, Interpolate):
        first, second = f"[{_image(step.first)}]", f"[{_image(step.second)}]"
        named = _python_pair("first", first, "second", second, step)
        return [*named, f"out = pipe.interpolate(first, second, {step.count})"]
    before, image = _python(step.source.step), _image(step.source)
    if isinstance(step, Reconstruct):
        return [*before, f"image = pipe.reconstruct([{image}])[0]"]
    if isinstance(step, PasteBack):
        made = step.source.step
        only = isinstance(made, Inpaint) and made.source.step == step.photo
        mask = f", mask={made.mask_name!r}" if isinstance(made, Inpaint) and only else ""
        return [*before, f"image = pipe.align({step.photo.name!r})[0].paste_back({image}{mask})"]
    call = _edit_call(step, image) if isinstance(step, Edit) else _inpaint_call(step, image)
    return [*before, f"out = {call}"]


def _python_pair(
    name: str, value: str, other: str, other_value: str, step: Mix | Interpolate
) -> list[str]:
    """Lines that bind two names to what two images are."""
    if isinstance(step, Mix):
        a, b = step.coarse.step, step.fine.step
    else:
        a, b = step.first.step, step.second.step
    between = [] if a == b else _python(b)
    return [*_python(a), f"{name} = {value}", *between, f"{other} = {other_value}"]


def _edit_call(step: Edit, image: str) -> str:
    options = named_edit(step)
    how = "" if options.method == "flow" else f", method={options.method!r}"
    last = f"strength={options.strength!r}{how}"
    return f"pipe.edit({_arguments(f'[{image}]', options)}, {last})"


def _inpaint_call(step: Inpaint, image: str) -> str:
    options, count = named_inpaint(step), len(step.seeds)
    images = f"[{image}]" + (f" * {count}" if count > 1 else "")
    first = f"{images}, {step.mask_name!r}, seeds={_seeds(step.seeds)}"
    return f"pipe.inpaint({_arguments(first, options)}, strength={options.strength!r})"


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
    step = origin.step
    if isinstance(step, Upload):
        return (
            repr(step.name) if step.aligned_to is None else f"pipe.align({step.name!r})[0].image"
        )
    return "image" if isinstance(step, Reconstruct | PasteBack) else f"out.images[{origin.index}]"


def _latents(origin: Origin) -> str:
    """An expression for what `vary` and `mix` can begin from, after its step's lines."""
    step, i = origin.step, origin.index
    if isinstance(step, Upload | Inpaint | PasteBack):
        return f"[{_image(origin)}]"
    if isinstance(step, Reconstruct):
        return f"[{_image(step.source)}]"  # its latents are those that the source is read as
    if isinstance(step, Draw | Vary):
        count = len(step.seeds)
    else:
        count = step.count if isinstance(step, Interpolate) else 1
    return "out" if count == 1 else f"out[{i}:{i + 1}]"


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
        what = "the middle square" if step.aligned_to is None else "the face"
        return f"# {file_name(origin)} is {what} of your own image"
    if isinstance(step, Draw):  # images that nothing follows go onto one grid
        return _line("hebm-sample", sample_words(step), "--out", "images.png")
    if isinstance(step, Interpolate):  # and so do frames
        return "\n".join(_shell_interpolate(step, ""))
    lines, _ = _shell(origin)
    return "\n".join(lines)


_Shell = tuple[list[str], PurePosixPath]


def _shell(origin: Origin, mark: str = "") -> _Shell:
    """Lines, and where they put the image.

    Arguments:
        mark: Of folders and files, so that two images' do not get in each other's way.
    """
    step = origin.step
    if isinstance(step, Upload):
        return [], PurePosixPath(step.name)
    if isinstance(step, Draw) or (isinstance(step, Vary) and step.sampled_source is not None):
        folder = ("drawn" if isinstance(step, Draw) else "varied") + mark
        line = _line("hebm-sample", sample_words(step), "--outdir", folder)
        return [line], PurePosixPath(folder, f"seed{step.seeds[origin.index]:04d}.png")
    if isinstance(step, Edit):
        return _shell_edit(step, mark)
    if isinstance(step, Inpaint):
        return _shell_inpaint(step, origin.index, mark)
    if isinstance(step, PasteBack) and (pasted := _shell_pasted(step)) is not None:
        return pasted
    words = mix_words(step) if isinstance(step, Mix) else None
    if words is not None:
        name = f"mixed{mark}.png"
        return [_line("hebm-sample", words, "--out", name)], PurePosixPath(name)
    before = _shell_interpolate(step, mark) if isinstance(step, Interpolate) else []
    name = file_name(origin)
    line = f"# no command {_NO_COMMAND[type(step)]}; the page and the lines of Python do: {name}"
    return [*before, line], PurePosixPath(name)


_NO_COMMAND = {
    Reconstruct: "reconstructs",
    Vary: "varies an image without a seed",
    Mix: "mixes other images than two seeds'",
    Interpolate: "writes a frame alone",
    PasteBack: "puts back what was edited before",
}


def _shell_edit(step: Edit, mark: str, *more: str, folder: str = "edited") -> _Shell:
    lines, image = _shell(step.source, mark)
    folder += f"{sum('hebm-edit edit' in line for line in lines) or ''}{mark}"
    words = [*edit_words(step, str(image)), *more]
    line = _line("hebm-edit edit", words, "--outdir", folder)
    return [*lines, line], PurePosixPath(folder, f"{image.stem}.png")


def _shell_inpaint(
    step: Inpaint, index: int, mark: str, *more: str, folder: str = "inpainted"
) -> _Shell:
    lines, image = _shell(step.source, mark)
    folder += f"{sum('hebm-edit inpaint' in line for line in lines) or ''}{mark}"
    words = [*inpaint_words(step, str(image)), *more]
    line = _line("hebm-edit inpaint", words, "--outdir", folder)
    return [*lines, line], PurePosixPath(folder, f"{image.stem}-seed{step.seeds[index]:04d}.png")


def _shell_pasted(step: PasteBack) -> _Shell | None:
    """The command that made the image, with --paste-back; None if it read another image."""
    made = step.source.step
    if isinstance(made, Edit) and made.source.step == step.photo:
        return _shell_edit(made, "", "--paste-back", folder="pasted")
    if isinstance(made, Inpaint) and made.source.step == step.photo:
        return _shell_inpaint(made, step.source.index, "", "--paste-back", folder="pasted")
    return None


def _shell_interpolate(step: Interpolate, mark: str) -> list[str]:
    lines, first = _shell_end(step.first, mark)
    if step.first.step == step.second.step:
        second_lines, second = _shell_end(step.second, mark)
    else:
        second_lines, second = _shell_end(step.second, f"-second{mark}")
    lines += [line for line in second_lines if line not in lines]
    words = interpolate_words(step, str(first), str(second))
    return [*lines, _line("hebm-edit interpolate", words, "--out", f"interpolated{mark}.png")]


def _shell_end(origin: Origin, mark: str) -> _Shell:
    """Of an end of the way: a face is the file that the page saves, since --align means both."""
    step = origin.step
    if isinstance(step, Upload) and step.aligned_to is not None:
        return [shell_lines(origin)], PurePosixPath(file_name(origin))
    return _shell(origin, mark)


def _line(program: str, words: list[str], *target: str) -> str:
    return f"{program} {shlex.join([*words, *target])}"
