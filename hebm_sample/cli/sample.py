"""The command `hebm-sample`: read what was typed, call the `Pipeline`, save images.

Whatever can be checked without the model (options, seeds, output paths) is checked first, and
torch is imported only after that.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hebm_sample import __version__
from hebm_sample.cli.list_models import list_models
from hebm_sample.cli.options import (
    DATASET,
    MANY,
    OUTPUT,
    PATH,
    REVISION,
    SAMPLER,
    STEERING,
    MixType,
    SectionedCommand,
    SeedsType,
    SeedType,
    finite,
    option,
    taking,
)
from hebm_sample.cli.requests import DEFAULT_COLUMNS, DEFAULT_IMAGES, SampleOptions, refuse
from hebm_sample.cli.run import (
    check_sheet,
    check_targets,
    load,
    model_facts,
    png_text,
    progress_bar,
    sampler_facts,
    within_memory,
)
from hebm_sample.cli.sharding import Share, holds, unfinished
from hebm_sample.cli.verify import verify
from hebm_sample.errors import UserInputError
from hebm_sample.io.animation import ANIMATED, HOLD, MAX_SECONDS, SECONDS
from hebm_sample.io.seeds import MAX_SEEDS, format_seeds

if TYPE_CHECKING:
    from PIL.Image import Image

    from hebm_sample.pipeline.outputs import Trajectory
    from hebm_sample.pipeline.pipeline import Pipeline, Samples

__all__ = ["main"]

_EXAMPLES = """\b
Examples:
  hebm-sample --dataset celebahq                     16 images to celebahq.png
  hebm-sample --dataset celebahq -n 64 --out faces.png
  hebm-sample --dataset celebahq --seeds 0-15,20 --outdir faces
  hebm-sample --dataset cifar10 --class horse --guidance 2
  hebm-sample --dataset celeba64 --attr Smiling --attr Male=no
  hebm-sample --dataset celebahq --keep-top 3 --from-seed 7 -n 8
  hebm-sample --dataset celebahq --layers --seeds 7  top to bottom, one more block freed a row
  hebm-sample --dataset celebahq --sampler flow --steps 20
  hebm-sample --dataset celeba64 --trajectory --sampler flow --steps 24 --out moving.gif
  hebm-sample --list
  hebm-sample --verify                               every file against its SHA-256

Completion: eval "$(_HEBM_SAMPLE_COMPLETE=bash_source hebm-sample)" in ~/.bashrc; also zsh, fish.
"""

Progress = Callable[[int], object]


# The work


def _check_outputs(options: SampleOptions) -> None:
    files = (options.image_path(s) for s in options.asked_seeds if not options.is_done(s))
    check_targets(options.grid_path, options.outdir, files if options.outdir else ())


def _check_cut(pipe: "Pipeline", options: SampleOptions) -> None:
    """--keep-top against the model's number of groups."""
    groups = len(pipe.config.generator.latent_shapes)
    most = groups if options.sheet == "mix" else groups - 1
    if options.keep_top is not None and options.keep_top > most:
        raise UserInputError(
            f"--keep-top is {options.keep_top}; {pipe.name} has {groups} groups, "
            f"of which 0 to {most} can be kept"
        )


def _facts(pipe: "Pipeline", options: SampleOptions) -> dict[str, Any]:
    """How the images come about, for the PNG's text and for --json; None: does not apply."""
    facts = model_facts(pipe) | sampler_facts(pipe, options) | {"prior": options.prior}
    if options.gaussian_prior:
        facts |= {"sampler": None, "steps": None}
    return facts | options.facts


def _total_steps(pipe: "Pipeline", options: SampleOptions, count: int) -> int:
    """Gradient evaluations of it all; `count` images are asked for."""

    def steps(images: int) -> int:
        return pipe.total_steps(
            num_images=images,
            batch_size=options.batch,
            steps=options.steps,
            prior=options.prior,
        )

    if options.sheet == "layers":
        rows = len(pipe.config.generator.latent_shapes)
        return steps(1) + rows * steps(options.columns - 1)
    if options.sheet == "variations":
        return steps(1) + steps(count)
    return steps(count) * (options.best_of or 1)


def _draw_some(
    pipe: "Pipeline", options: SampleOptions, seeds: Sequence[int], progress: Progress
) -> "Samples":
    """Whole images of these seeds."""
    best: dict[str, Any] = {} if options.best_of is None else {"best_of": options.best_of}
    return pipe(
        seeds=list(seeds),
        prior=options.prior,
        batch_size=options.batch,
        output_type="pil",
        progress=progress,
        **options.settings,
        **options.wishes,
        **best,
    )


def _batches(
    pipe: "Pipeline", options: SampleOptions, seeds: Sequence[int], progress: Progress
) -> Iterator["Samples"]:
    """Batch after batch, so that finished images are saved while the next are drawn."""
    source = None
    if options.from_seed is not None:
        source = _draw_some(pipe, options, [options.from_seed], progress)
    for first in range(0, len(seeds), options.batch):
        some = list(seeds[first : first + options.batch])
        if source is None:
            yield _draw_some(pipe, options, some, progress)
            continue
        yield pipe.vary(
            source,
            slice(0, options.keep_top),
            len(some),
            seeds=some,
            batch_size=options.batch,
            progress=progress,
            **options.settings,
            **options.wishes,
        )


Energies = list[list[float]]


def _energies(samples: "Samples") -> Energies:
    return [] if samples.energies is None else samples.energies.float().tolist()


def _layers(
    pipe: "Pipeline", options: SampleOptions, progress: Progress
) -> tuple[list["Image"], Energies]:
    samples = pipe.layers(
        options.asked_seeds[0],
        options.columns,
        batch_size=options.batch,
        progress=progress,
        **options.settings,
        **options.wishes,
    )
    return samples.images, _energies(samples)


def _mixed(
    pipe: "Pipeline", options: SampleOptions, progress: Progress
) -> tuple[list["Image"], Energies]:
    """The two seeds' images mixed at each cut; energies are of the two."""
    drawn = _draw_some(pipe, options, options.asked_seeds, progress)
    coarse, fine = (tuple(group[i : i + 1] for group in drawn.latents) for i in (0, 1))
    cuts = range(len(coarse) + 1) if options.keep_top is None else [options.keep_top]
    return [pipe.mix(coarse, fine, cut)[0] for cut in cuts], _energies(drawn)


def _trajectory(
    pipe: "Pipeline", options: SampleOptions, seeds: Sequence[int], progress: Progress
) -> "Trajectory":
    """The images after each level, and at last as they are."""
    return pipe.trajectory(
        seeds=list(seeds),
        batch_size=options.batch,
        progress=progress,
        **options.settings,
        **options.wishes,
    )


def _sheet_shape(pipe: "Pipeline", options: SampleOptions, count: int) -> tuple[int, int | None]:
    """(images, columns) of what goes onto one sheet."""
    groups = len(pipe.config.generator.latent_shapes)
    if options.sheet == "layers":
        return groups * options.columns, options.columns
    if options.sheet == "mix":
        columns = 1 if options.keep_top is not None else groups + 1
        return columns, columns
    if options.sheet == "trajectory":
        facts, prior = sampler_facts(pipe, options), pipe.config.prior
        levels = prior.num_levels if prior is not None else 1
        columns = facts["steps"] if facts["sampler"] == "flow" else levels
        return count * columns, columns
    return count, None


def _draw(
    pipe: "Pipeline", options: SampleOptions, seeds: Sequence[int], facts: dict[str, Any]
) -> tuple[list[Path], Energies, int]:
    """Sample and save; (the files written, the energies (N, L), the number of images)."""
    from hebm_sample.io.images import grid, save_png

    _check_cut(pipe, options)
    count, columns = _sheet_shape(pipe, options, len(seeds))
    if options.outdir is None:
        check_sheet(count, facts["resolution"], columns)
    files: list[Path] = []
    energies: Energies = []
    images: list[Image] = []
    moving: Trajectory | None = None
    total = _total_steps(pipe, options, len(seeds))
    with (
        progress_bar(total, pipe.name, options.quiet) as progress,
        within_memory(options.batch),
    ):
        if options.sheet == "layers":
            images, energies = _layers(pipe, options, progress)
        elif options.sheet == "mix":
            images, energies = _mixed(pipe, options, progress)
        elif options.sheet == "trajectory":
            moving = _trajectory(pipe, options, seeds, progress)
            energies = _energies(moving.samples)
        else:
            for samples in _batches(pipe, options, seeds, progress):
                energies += _energies(samples)
                if options.outdir is None:
                    images += samples.images
                else:
                    files += _save_each(samples, options, facts)
    if options.outdir is None:
        files.append(options.grid_path)
        text = png_text(facts, seeds=format_seeds(seeds))
        if moving is not None:
            moving.save(options.grid_path, options.seconds or SECONDS, text)
        else:
            save_png(grid(images, columns), options.grid_path, text)
    return files, energies, count


def _save_each(samples: "Samples", options: SampleOptions, facts: dict[str, Any]) -> list[Path]:
    """--outdir; the files written."""
    from hebm_sample.io.images import save_png

    assert options.outdir is not None
    options.outdir.mkdir(parents=True, exist_ok=True)
    files = [options.image_path(seed) for seed in samples.seeds]
    for seed, path, image in zip(samples.seeds, files, samples.images, strict=True):
        save_png(image, path, png_text(facts, seed=seed))
    return files


def _prepared(options: SampleOptions, share: Share) -> tuple["Pipeline", SampleOptions]:
    """The model, and the options with what only it can say."""
    pipe = load(options, share.device(options.device))
    pipe.compile_chains = options.compiled
    if not options.batch:
        from hebm_sample.pipeline.batch_size import fitting_batch

        options = replace(options, batch=fitting_batch(pipe))
    return pipe, options


def _sample(options: SampleOptions) -> None:
    start = time.perf_counter()
    share = Share.from_environment()
    refuse(
        share.size > 1 and options.outdir is None,
        f"WORLD_SIZE is {share.size}: several processes share the seeds and write one file a "
        "image; give --outdir",
    )
    _check_outputs(options)
    pipe, options = _prepared(options, share)
    facts = _facts(pipe, options)
    asked = list(options.asked_seeds)
    with ExitStack() as stack:
        stopped = False
        if options.outdir is not None:
            asked = share.take(asked, options.batch)
            stopped = stack.enter_context(unfinished(options.outdir, share))

        def is_done(seed: int) -> bool:
            text, path = png_text(facts, seed=seed), options.image_path(seed)
            return options.is_done(seed) or (stopped and holds(path, text))

        seeds = [seed for seed in asked if not is_done(seed)]
        drawn = _draw(pipe, options, seeds, facts) if seeds else ([], [], 0)
    _tell(options, seeds, len(asked) - len(seeds), drawn, facts, time.perf_counter() - start)


def _tell(
    options: SampleOptions,
    seeds: Sequence[int],
    skipped: int,
    drawn: tuple[list[Path], Energies, int],
    facts: dict[str, Any],
    seconds: float,
) -> None:
    """The closing line, or --json's answer."""
    files, energies, count = drawn
    if options.as_json:
        what = {"files": list(map(os.fspath, files)), "seeds": seeds, "skipped": skipped}
        click.echo(
            json.dumps({**what, "energies": energies, **facts, "seconds": round(seconds, 3)})
        )
    elif not options.quiet:
        where = click.format_filename(options.outdir or options.grid_path)
        noun = "image" if count == 1 else "images"
        already = f", {skipped} already there" if skipped else ""
        click.echo(f"{where}: {count} {noun} in {seconds:.1f} s{already}")


# The command


# What the commands that draw nothing take beside themselves.
_LIST_TAKES = {"list_models", "as_json", "quiet"}
_PLACE = {"dataset", "resolution", "revision", "cache_dir"}
_VERIFY_TAKES = {"verify", "offline", "as_json", "quiet", *_PLACE}


def _refuse_company(ctx: click.Context, allowed: set[str], message: str) -> None:
    """An option that would be ignored is an error."""
    typed = click.core.ParameterSource.COMMANDLINE
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is typed}
    if given - allowed:
        raise UserInputError(f"{message}; leave the other options out")


_NUMBER = click.IntRange(1, MAX_SEEDS)
_SECONDS = click.FloatRange(0, MAX_SECONDS, min_open=True)
_HELP = {
    "list": "Show the models and their symbols, and leave.",
    "verify": "Check the SHA-256 of every file, of --dataset or of all models, and leave.",
    "n": f"Number of images, of seeds 0 to N-1.  [default: {DEFAULT_IMAGES}]",
    "seeds": "One image a seed: numbers and ranges, 0-15,20.",
    "from": "Variations of this seed's image, one per seed of --seeds or -n.",
    "keep": "With --from-seed or --mix: number of top groups of latents that are kept.",
    "layers": "One seed from top to bottom: each row frees one more group; -n columns "
    f"[default: {DEFAULT_COLUMNS}].",
    "mix": "Coarse groups of seed A, fine ones of seed B: one image for each cut, B to A.",
    "trajectory": "A row per seed: its image after each noise level; images that move if --out "
    f"ends in {' or '.join(ANIMATED)}.",
    "seconds": f"How long those move before the last is held for {HOLD:g} s.  "
    f"[default: {SECONDS:g}]",
    "best": "Of N candidates an image, keep the one of highest log density.",
    "gaussian": "Draw from N(0, I), without the energy-based prior.",
    "out": "One PNG with all images on a sheet.  [default: the model's name]",
    "outdir": "One PNG an image instead: DIR/seed0007.png. If stopped, it goes on from there.",
    "skip": "With --outdir: leave out seeds whose file is there already.",
}


@click.command(
    cls=SectionedCommand,
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@taking(
    DATASET,
    REVISION,
    option("Model", "--list", "list_models", is_flag=True, help=_HELP["list"]),
    option("Model", "--verify", is_flag=True, help=_HELP["verify"]),
    option("Images", "-n", "--num-images", type=_NUMBER, metavar="N", help=_HELP["n"]),
    option("Images", "--seeds", type=SeedsType(), metavar="LIST", help=_HELP["seeds"]),
    option("Images", "--from-seed", type=SeedType(), metavar="S", help=_HELP["from"]),
    option("Images", "--keep-top", type=click.IntRange(0), metavar="K", help=_HELP["keep"]),
    option("Images", "--layers", is_flag=True, help=_HELP["layers"]),
    option("Images", "--mix", type=MixType(), metavar="A:B", help=_HELP["mix"]),
    option("Images", "--trajectory", is_flag=True, help=_HELP["trajectory"]),
    option(
        "Images",
        "--seconds",
        type=_SECONDS,
        callback=finite,
        metavar="S",
        help=_HELP["seconds"],
    ),
    STEERING,
    option("Steering", "--best-of", type=click.IntRange(1, 1000), metavar="N", help=_HELP["best"]),
    SAMPLER,
    option("Sampler", "--gaussian-prior", is_flag=True, help=_HELP["gaussian"]),
    MANY,
    option("Output", "--out", type=PATH, metavar="FILE", help=_HELP["out"]),
    option("Output", "--outdir", type=PATH, metavar="DIR", help=_HELP["outdir"]),
    option("Output", "--skip-existing", is_flag=True, help=_HELP["skip"]),
    OUTPUT,
)
@click.version_option(__version__, message="hebm-sample %(version)s")
@click.pass_context
def main(ctx: click.Context, /, **options: Any) -> None:
    """Sample images from a hierarchical generator with an energy-based prior.

    One seed is one image, whatever the batch. On a terminal a progress bar counts gradient
    evaluations. Seeds, model, what was asked and version are written into the PNG's text.
    """
    if options["list_models"]:
        _refuse_company(ctx, _LIST_TAKES, "--list goes with --json at most")
        list_models(options["as_json"])
    elif options.pop("verify"):
        _refuse_company(ctx, _VERIFY_TAKES, "--verify goes with what says where a model lies")
        verify(
            **{name: options[name] for name in _PLACE},
            local_files_only=options["offline"],
            as_json=options["as_json"],
            quiet=options["quiet"],
        )
    else:
        _sample(SampleOptions(**options))


if __name__ == "__main__":
    main()
