"""What `hebm-edit` does: edit, interpolate, inpaint and score images that are read from files."""

import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hebm_sample.cli.printing import say
from hebm_sample.cli.requests.base import CommandOptions, SteeringOptions
from hebm_sample.cli.requests.edit import (
    STDIN,
    EditOptions,
    InpaintOptions,
    InterpolateOptions,
    ScoreOptions,
    name_of,
)
from hebm_sample.cli.requests.words import edit_line, inpaint_line, interpolate_line
from hebm_sample.cli.work.model import load, progress_bar, with_known_names, within_memory
from hebm_sample.cli.work.outputs import (
    check_grid,
    check_targets,
    energies_of,
    refuse_mixed,
    save_claiming,
    save_grid,
    tell,
)
from hebm_sample.cli.work.scores import score_table, scores
from hebm_sample.errors import UserInputError
from hebm_sample.io.files import printable
from hebm_sample.pipeline.provenance import Provenance

if TYPE_CHECKING:
    from PIL.Image import Image

    from hebm_sample.pipeline.alignment import Framed
    from hebm_sample.pipeline.pipeline import Pipeline, Samples

    Source: TypeAlias = Path | Image

__all__ = ["edit", "inpaint", "interpolate", "provenance_of", "score", "single_text"]


# Before the model is loaded


def _grid_path(options: CommandOptions, first: Path, what: str) -> Path:
    """--out, or the first image's name with what was done."""
    return options.out or Path(f"{name_of(first)}-{what}.png")


def _read(
    options: CommandOptions, sources: Sequence[Path], grid: Path, targets: Sequence[Path]
) -> list["Source"]:
    """The sources, each an image, if nothing that is there would be overwritten unasked."""
    outdir, images = options.outdir, _read_sources(sources)
    check_targets(grid, outdir, targets)
    read = {os.path.realpath(source) for source in sources}
    for path in targets if outdir is not None else [grid]:
        if os.path.realpath(path) in read:
            raise UserInputError(
                f"{path} is an image that is read; write to another place, so that it stays"
            )
    _refuse_existing(options, grid, targets)
    return images


def _refuse_existing(options: CommandOptions, grid: Path, targets: Sequence[Path]) -> None:
    """`UserInputError` if a name that nobody typed is taken: --out itself is what was asked."""
    derived = list(targets) if options.outdir is not None else [grid] * (options.out is None)
    there = [path for path in derived if os.path.lexists(path)]
    if there and not options.overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UserInputError(
            f"{there[0]}{more} would be overwritten; write to another place, or add --overwrite"
        )


def _read_sources(sources: Sequence[Path]) -> list["Source"]:
    """Files by their paths, checked one at a time: many large images do not fit into memory
    together. What can be read only once, - and pipes, as images.
    """
    from hebm_sample.io.images import open_image

    if [str(source) for source in sources].count(STDIN) > 1:
        raise UserInputError("- is the standard input, which can be read once; give it once")
    found: list[Any] = []
    for source in sources:
        if str(source) == STDIN:
            found.append(open_image(sys.stdin.buffer))
            continue
        is_stream = os.path.exists(source) and not (source.is_file() or source.is_dir())
        image = open_image(source)
        found.append(image if is_stream else source)
    return found


def _refuse_mixed(options: EditOptions | InpaintOptions, provenance: Provenance) -> None:
    """`UserInputError` if results of another model lie where these are to go."""
    if options.outdir is not None:
        names, one = options.image_names, single_text(options, provenance, 0)
        refuse_mixed(options.outdir, names, one, options.targets, overwrite=True)


# After it


def _squares(pipe: "Pipeline", sources: Any) -> list["Image"]:
    """The images as the model sees them."""
    from hebm_sample.io.images import prepare, to_pil

    return to_pil(prepare(list(sources), pipe.config.generator.image_size))


def _framed(
    pipe: "Pipeline",
    options: EditOptions | InpaintOptions | InterpolateOptions | ScoreOptions,
    sources: Sequence["Source"],
) -> "Framed":
    """The images, or the faces in them; a line for each that is not as the model's images are,
    which is no closing line, so --quiet leaves it.
    """
    from hebm_sample.pipeline.alignment import frame

    def lines(notes: list[str]) -> None:
        for note in notes:
            say(f"warning: {note}", err=True)

    names: dict[str, Any] = {"paste_back": options.paste_back, "face": options.face}
    names["photographs"] = options.paste_back or isinstance(options, InpaintOptions)
    framed = frame(pipe.model, list(sources), align=options.align, say=lines, **names)
    _say_chosen(options, framed, sources)
    return framed


def _say_chosen(
    options: EditOptions | InpaintOptions | InterpolateOptions | ScoreOptions,
    framed: "Framed",
    sources: Sequence["Source"],
) -> None:
    """Which face was taken of a photograph with several, unless one was asked for."""
    if options.quiet or options.face is not None:
        return
    for source, aligned in zip(sources, framed.aligned or (), strict=False):
        if aligned is not None and aligned.count > 1:
            name = printable(str(source)) if isinstance(source, Path) else "the image"
            say(
                f"{name}: the largest of {aligned.count} faces; --face K takes another, numbered "
                "from the left",
                err=True,
            )


def _total_steps(pipe: "Pipeline", options: SteeringOptions, count: int) -> int:
    return pipe.total_steps(num_images=count, batch_size=options.batch, steps=options.steps)


def provenance_of(pipe: "Pipeline", options: EditOptions | InpaintOptions) -> Provenance:
    """How the images come about."""
    found = Provenance.of_samples(pipe, **options.settings, encoder=True).saying(**options.facts)
    is_inverted = isinstance(options, EditOptions) and options.method == "flow"
    return found.saying(temperature=None) if is_inverted else found  # nothing is drawn


def _save(
    options: EditOptions | InpaintOptions,
    grid: tuple[Path, list["Image"], int],
    samples: "Samples",
    provenance: Provenance,
) -> list[Path]:
    """The grid (path, images, columns), or with --outdir each of the samples under its own path.

    Returns the files written.
    """
    if options.outdir is not None:
        texts = [single_text(options, provenance, i) for i in range(len(samples))]
        refuse = partial(_refuse_mixed, options, provenance)
        return save_claiming(options.outdir, refuse, samples.images, options.targets, texts)
    path, images, columns = grid
    if options.paste_back:
        images, columns = samples.images, 1
    seeds = options.chosen_seeds
    if isinstance(options, EditOptions):
        line = edit_line(options, provenance.facts, options.images, seeds, path)
    else:
        line = inpaint_line(options, provenance.facts, seeds, path)
    text = {**provenance.of_seeds(*seeds).text(), "command": line}
    return save_grid(images, columns, path, text)


def single_text(
    options: EditOptions | InpaintOptions, provenance: Provenance, index: int
) -> dict[str, str]:
    """What the file of the `index`-th result says of how it came about."""
    seed, facts = options.chosen_seeds[index], provenance.facts
    if isinstance(options, EditOptions):
        line = edit_line(options, facts, [options.images[index]], [seed], None)
    else:
        line = inpaint_line(options, facts, [seed], None)
    return {**provenance.of_seeds(seed).text(single=True), "command": line}


def _finish(
    options: EditOptions | InpaintOptions,
    files: list[Path],
    samples: "Samples",
    provenance: Provenance,
    start: float,
) -> None:
    answer = {"seeds": list(samples.seeds), "energies": energies_of(samples), **provenance.facts}
    where = options.outdir or files[0]
    tell(options, files, len(samples), answer, where=where, start=start)


# The commands


def edit(options: EditOptions) -> None:
    """Lead images to a condition; the grid has each as it is, reconstructed, edited."""
    start = time.perf_counter()
    path = _grid_path(options, options.images[0], "edit")
    sources = _read(options, options.images, path, options.targets)
    pipe = load(options)
    options = with_known_names(options, pipe)
    if options.outdir is None:
        check_grid(path, 3 * len(options.images), pipe.config.generator.image_size, 3)
    framed = _framed(pipe, options, sources)
    provenance = provenance_of(pipe, options)
    _refuse_mixed(options, provenance)
    originals = _squares(pipe, framed.images)
    decoded, edited = _edited(pipe, options, framed, originals)
    if not options.symbols and options.method == "flow":
        say("warning: no --attr or --class says what should change, so nothing does", err=True)
    rows = zip(originals, decoded, edited.images, strict=True)
    images = [image for row in rows for image in row]
    edited = framed.pasted(edited, options.paste_back)
    files = _save(options, (path, images, 3), edited, provenance)
    _finish(options, files, edited, provenance, start)


def _edited(
    pipe: "Pipeline", options: EditOptions, framed: "Framed", originals: list["Image"]
) -> "tuple[list[Image], Samples]":
    """The images reconstructed from the draw that their edit begins from, and edited.

    Arguments:
        originals: As the model sees them.
    """
    seeds, batch = options.chosen_seeds, options.batch
    total = _total_steps(pipe, options, len(originals))
    with progress_bar(total, pipe.name, options.quiet) as progress, within_memory(batch):
        edited = pipe.edit(
            framed.showing(originals),
            groups=None if options.groups is None else list(options.groups),
            strength=options.strength,
            method=options.method,
            seeds=seeds,
            batch_size=batch,
            progress=progress,
            **options.settings,
            **options.condition,
        )
        u = pipe.encode(framed.showing(originals), seeds=seeds, batch_size=batch)
        decoded = pipe.decode(u, decoder=options.decoder)
    return decoded, edited


def interpolate(options: InterpolateOptions) -> None:
    """A row of images from one to the other."""
    start, count = time.perf_counter(), options.num_images
    path = _grid_path(options, options.a, "interpolate")
    sources = _read(options, [options.a, options.b], path, [])
    pipe = load(options)
    check_grid(path, count, pipe.config.generator.image_size, count, alone=False)
    decoder, batch = options.decoder, options.batch
    framed = _framed(pipe, options, sources)
    with within_memory(batch):
        a, b = (framed.showing([image]) for image in _squares(pipe, framed.images))
        between = pipe.interpolate(a, b, count, decoder=decoder, batch_size=batch)
    provenance = Provenance.of_decoded(pipe, decoder, encoder=True).saying(**options.alignment)
    line = interpolate_line(options, provenance.facts, path)
    files = save_grid(between, count, path, {**provenance.text(), "command": line})
    tell(options, files, count, dict(provenance.facts), where=path, start=start)


def inpaint(options: InpaintOptions) -> None:
    """Fill in the white of a mask; the grid is a row: the image, what is known, the results."""
    from hebm_sample.io.images import prepare, prepare_masks, to_pil

    start = time.perf_counter()
    path = _grid_path(options, options.image, "inpaint")
    image, mask = _read(options, [options.image, options.mask], path, options.targets)
    pipe = load(options)
    options = with_known_names(options, pipe)
    columns, size = len(options.chosen_seeds) + 2, pipe.config.generator.image_size
    if options.outdir is None:
        check_grid(path, columns, size, columns)
    framed = _framed(pipe, options, [image])
    x = prepare(framed.listed(), size)
    unknown = prepare_masks(framed.masks(mask), framed.images, size, 1)
    provenance = provenance_of(pipe, options)
    _refuse_mixed(options, provenance)
    known = [*to_pil(x), *to_pil(x.masked_fill(unknown, 0.0))]
    given = mask if framed.aligned else unknown[0]
    filled = _filled(pipe, options, framed, x, given)
    images = [*known, *([] if options.paste_back else filled.images)]
    files = _save(options, (path, images, columns), filled, provenance)
    _finish(options, files, filled, provenance, start)


def _filled(
    pipe: "Pipeline", options: InpaintOptions, framed: "Framed", x: Any, mask: Any
) -> "Samples":
    """One result per seed; with --paste-back in its photograph.

    Arguments:
        x: The image (1, 3, S, S) in [-1, 1].
        mask: As of `Pipeline.inpaint`.
    """
    seeds = options.chosen_seeds
    total = _total_steps(pipe, options, len(seeds))
    with progress_bar(total, pipe.name, options.quiet) as progress, within_memory(options.batch):
        return pipe.inpaint(
            framed.repeated(len(seeds)).showing((x + 1).div(2).expand(len(seeds), -1, -1, -1)),
            mask,
            weight=options.weight,
            strength=options.strength,
            seeds=seeds,
            batch_size=options.batch,
            progress=progress,
            paste_back=options.paste_back,
            **options.settings,
            **options.condition,
        )


def score(options: ScoreOptions) -> None:
    """Print what the model says about images."""
    start = time.perf_counter()
    sources = _read_sources(options.images)
    pipe = load(options)
    groups = None if options.groups is None else list(options.groups)
    with within_memory(options.batch):
        framed = _framed(pipe, options, sources)
        seen = framed.showing(_squares(pipe, framed.images))
        rows = scores(pipe, seen, groups, options.batch)
    rows = [{"picture": os.fspath(p), **r} for p, r in zip(options.images, rows, strict=True)]
    if options.as_json:
        seconds = round(time.perf_counter() - start, 3)
        facts = {"p_value": pipe.p_value_note(), **Provenance.of_model(pipe).facts}
        say(json.dumps({"scores": rows, **facts, "seconds": seconds}))
    else:
        held_out = 0 if pipe.calibration is None else len(pipe.calibration.distances)
        say(score_table(rows, held_out))
        say(pipe.p_value_note())
