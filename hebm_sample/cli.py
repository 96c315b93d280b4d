"""The command `hebm-sample`: read what was typed, call the `Pipeline`, save pictures.

Whatever can be checked without the model (options, seeds, output paths) is checked first, and
torch is imported only after that.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from hebm_sample import __version__
from hebm_sample.config import SamplerName
from hebm_sample.console import OneLineErrors
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.options import DEFAULT_PICTURES, SampleOptions, SeedsType, finite
from hebm_sample.seeds import MAX_SEEDS, format_seeds

if TYPE_CHECKING:
    from hebm_sample.pipeline import Pipeline, Samples

__all__ = ["main"]

_CPU_MEMORY = "can't allocate memory"

_EXAMPLES = """\b
Examples:
  hebm-sample --dataset celebahq                     16 pictures to celebahq.png
  hebm-sample --dataset celebahq -n 64 --out faces.png
  hebm-sample --dataset celebahq --seeds 0-15,20 --outdir faces
  hebm-sample --dataset celebahq --sampler flow --steps 20
  hebm-sample --dataset celebahq --gaussian-prior --out torn.png
  hebm-sample --dataset ./my-model --device cpu --json
  hebm-sample --list
"""


# The work


def _check_outputs(options: SampleOptions) -> None:
    """Find out now, not after minutes of sampling, that the pictures could not be saved."""
    from hebm_sample.images import check_folder, check_writable

    if options.outdir is None:
        check_writable(options.grid_path)
        return
    check_folder(options.outdir)
    for seed in options.asked_seeds:
        path = options.picture_path(seed)
        if os.path.lexists(path) and not options.is_done(seed):
            check_writable(path)


def _load(options: SampleOptions) -> "Pipeline":
    if options.quiet or not sys.stderr.isatty():
        # huggingface_hub reads this when it is imported, which is not before the next lines.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch

    from hebm_sample.pipeline import Pipeline

    return Pipeline.from_pretrained(
        options.dataset or "",
        resolution=options.resolution,
        revision=options.revision,
        cache_dir=options.cache_dir,
        local_files_only=options.offline,
        device=options.device,
        dtype=getattr(torch, options.dtype),
    )


def _facts(pipe: "Pipeline", options: SampleOptions) -> dict[str, Any]:
    """How the pictures come about, for the PNG's text and for --json; None: does not apply."""
    default = pipe.config.sampling
    chain = not options.gaussian_prior
    steps = pipe.total_steps(num_images=1, batch_size=1, steps=options.steps, prior=options.prior)
    return {
        "model": pipe.name,
        "resolution": pipe.config.generator.image_size,
        "sampler": (options.sampler or default.sampler) if chain else None,
        "steps": steps if chain else None,
        "temperature": default.temperature if options.temperature is None else options.temperature,
        "prior": options.prior,
        "revision": pipe.revision,
        "version": f"hebm_sample {__version__}",
    }


def _text(facts: dict[str, Any], **seeds: object) -> dict[str, str]:
    return {key: str(value) for key, value in {**seeds, **facts}.items() if value is not None}


def _batches(
    pipe: "Pipeline",
    options: SampleOptions,
    seeds: Sequence[int],
    progress: Callable[[int], object],
) -> Iterator["Samples"]:
    """Batch after batch, so that finished pictures are saved while the next are drawn."""
    import torch

    for first in range(0, len(seeds), options.batch):
        try:
            samples = pipe(
                seeds=list(seeds[first : first + options.batch]),
                sampler=options.sampler,
                steps=options.steps,
                temperature=options.temperature,
                prior=options.prior,
                batch_size=options.batch,
                output_type="pil",
                progress=progress,
            )
        except RuntimeError as error:
            # On the CPU torch has no class of its own for it.
            is_memory = isinstance(error, torch.OutOfMemoryError) or _CPU_MEMORY in str(error)
            if not is_memory:
                raise
            raise EnvironmentFailure(
                f"the device has too little memory for --batch {options.batch}; try a smaller one"
            ) from error
        yield samples


def _check_grid(count: int, resolution: int) -> None:
    from hebm_sample.images import MAX_PIXELS, grid_size

    width, height = grid_size(count, resolution, resolution)
    if width * height > MAX_PIXELS:
        raise UserInputError(
            f"a grid of {count} pictures would have {width} x {height} pixels; "
            "use --outdir, or ask for fewer pictures"
        )


def _draw(
    pipe: "Pipeline", options: SampleOptions, seeds: Sequence[int], facts: dict[str, Any]
) -> tuple[list[Path], list[list[float]]]:
    """Sample and save; (the files written, the energies (N, L) of the pictures)."""
    from tqdm.auto import tqdm

    from hebm_sample.images import grid, save_png

    count = {"num_images": len(seeds), "batch_size": options.batch}
    total = pipe.total_steps(**count, steps=options.steps, prior=options.prior)
    outdir, files, energies, pictures = options.outdir, [], [], []
    if outdir is None:
        _check_grid(len(seeds), facts["resolution"])
    # disable=None: silent where stderr is no terminal.
    silent = True if options.quiet or total == 0 else None
    with tqdm(total=total, desc=pipe.name, unit="grad", leave=False, disable=silent) as bar:
        for samples in _batches(pipe, options, seeds, bar.update):
            if samples.energies is not None:
                energies.extend(samples.energies.float().tolist())
            if outdir is None:
                pictures.extend(samples.images)
                continue
            outdir.mkdir(parents=True, exist_ok=True)
            for seed, image in zip(samples.seeds, samples.images, strict=True):
                files.append(options.picture_path(seed))
                save_png(image, files[-1], _text(facts, seed=seed))
    if outdir is None:
        files.append(options.grid_path)
        save_png(grid(pictures), files[-1], _text(facts, seeds=format_seeds(seeds)))
    return files, energies


def _sample(options: SampleOptions) -> None:
    start = time.perf_counter()
    _check_outputs(options)
    seeds = [seed for seed in options.asked_seeds if not options.is_done(seed)]
    skipped = len(options.asked_seeds) - len(seeds)
    pipe = _load(options)
    facts = _facts(pipe, options)
    files, energies = _draw(pipe, options, seeds, facts) if seeds else ([], [])
    seconds = round(time.perf_counter() - start, 3)
    if options.as_json:
        drawn = {"files": list(map(os.fspath, files)), "seeds": seeds, "skipped": skipped}
        click.echo(json.dumps({**drawn, "energies": energies, **facts, "seconds": seconds}))
    elif not options.quiet:
        where = click.format_filename(options.outdir or options.grid_path)
        noun = "picture" if len(seeds) == 1 else "pictures"
        already = f", {skipped} already there" if skipped else ""
        click.echo(f"{where}: {len(seeds)} {noun} in {seconds:.1f} s{already}")


# --list


def _list_models(as_json: bool) -> None:
    import hebm_sample

    rows = sorted(hebm_sample.list_models(), key=lambda row: (row.name, row.resolution))
    if as_json:
        keys = ("name", "resolution", "default", "repo_id", "revision", "licence")
        models = [
            {key: getattr(row, key) for key in keys}
            | {"embedded": row.folder is not None, "figures": dict(row.figures)}
            for row in rows
        ]
        click.echo(json.dumps({"models": models}))
        return
    table = [("name", "resolution", "where", "licence", "gap closed")]
    for row in rows:
        where = "embedded" if row.folder is not None else row.repo_id or "not published"
        gap = row.figures.get("gap_closed")
        shown = f"{gap:.2f}" if isinstance(gap, (int, float)) else "-"
        table.append((row.name, str(row.resolution), where, row.licence, shown))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        click.echo(line.rstrip())


def _refuse_company(ctx: click.Context) -> None:
    """--list answers about all models; an option that it would ignore is an error."""
    typed = click.core.ParameterSource.COMMANDLINE
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is typed}
    if given - {"list_models", "as_json", "quiet"}:
        raise UserInputError("--list goes with --json at most; leave the other options out")


# The command

_PATH = click.Path(path_type=Path)
_INTEGERS = click.IntRange
_HELP = {
    "dataset": "Model name (see --list), Hub repository id, or local folder.",
    "n": f"Number of pictures, of seeds 0 to N-1.  [default: {DEFAULT_PICTURES}]",
    "seeds": "One picture a seed: numbers and ranges, 0-15,20.",
    "resolution": "Side in pixels, where a model comes in several.",
    "out": "One PNG with all pictures as a grid.  [default: the model's name]",
    "outdir": "One PNG a picture instead: DIR/seed0007.png.",
    "skip": "With --outdir: leave out seeds whose file is there already.",
    "sampler": "How to sample.  [default: the model's]",
    "steps": "Gradient evaluations in all.  [default: the model's]",
    "temperature": "Factor on the noise's standard deviation.  [default: the model's]",
    "gaussian": "Draw from N(0, I), without the energy-based prior.",
    "device": "Where to compute.",
    "dtype": "Precision of the networks.",
    "batch": "Most pictures at a time.",
    "offline": "Use only files that are on this machine.",
    "revision": "Commit, tag or branch of a Hub repository.",
    "cache": "Folder of the Hub's cache.",
    "list": "Show the models and leave.",
    "json": "Answer with one JSON object on stdout.",
    "quiet": "No progress bar and no closing line.",
}
_DEVICES = click.Choice(["auto", "cpu", "cuda"])
_DTYPES = click.Choice(["float32", "bfloat16"])
_SAMPLERS = click.Choice(get_args(SamplerName))


@click.command(
    cls=OneLineErrors,
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--dataset", metavar="MODEL", help=_HELP["dataset"])
@click.option("-n", "--num-images", type=_INTEGERS(1, MAX_SEEDS), metavar="N", help=_HELP["n"])
@click.option("--seeds", type=SeedsType(), metavar="LIST", help=_HELP["seeds"])
@click.option("--resolution", type=_INTEGERS(1), metavar="N", help=_HELP["resolution"])
@click.option("--out", type=_PATH, metavar="FILE", help=_HELP["out"])
@click.option("--outdir", type=_PATH, metavar="DIR", help=_HELP["outdir"])
@click.option("--skip-existing", is_flag=True, help=_HELP["skip"])
@click.option("--sampler", type=_SAMPLERS, help=_HELP["sampler"])
@click.option("--steps", type=_INTEGERS(1, 100_000), metavar="N", help=_HELP["steps"])
@click.option(
    "--temperature",
    type=click.FloatRange(0.0, 10.0),
    callback=finite,
    metavar="FACTOR",
    help=_HELP["temperature"],
)
@click.option("--gaussian-prior", is_flag=True, help=_HELP["gaussian"])
@click.option("--device", type=_DEVICES, default="auto", show_default=True, help=_HELP["device"])
@click.option("--dtype", type=_DTYPES, default="float32", show_default=True, help=_HELP["dtype"])
@click.option(
    "--batch",
    type=_INTEGERS(1, 4096),
    default=16,
    metavar="N",
    show_default=True,
    help=_HELP["batch"],
)
@click.option("--offline", is_flag=True, help=_HELP["offline"])
@click.option("--revision", metavar="REV", help=_HELP["revision"])
@click.option("--cache-dir", type=_PATH, metavar="DIR", help=_HELP["cache"])
@click.option("--list", "list_models", is_flag=True, help=_HELP["list"])
@click.option("--json", "as_json", is_flag=True, help=_HELP["json"])
@click.option("--quiet", is_flag=True, help=_HELP["quiet"])
@click.version_option(__version__, message="hebm-sample %(version)s")
@click.pass_context
def main(ctx: click.Context, /, **options: Any) -> None:
    """Sample pictures from a hierarchical generator with an energy-based prior.

    One seed is one picture, whatever the batch. On a terminal a progress bar counts gradient
    evaluations. Seeds, model and version are written into the PNG's text.
    """
    if options["list_models"]:
        _refuse_company(ctx)
        _list_models(options["as_json"])
    else:
        _sample(SampleOptions(**options))


if __name__ == "__main__":
    main()
