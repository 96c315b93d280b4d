"""What `hebm-sample` does: call the `Pipeline` for each kind of grid, save, tell."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hebm_sample.cli.requests.base import refuse
from hebm_sample.cli.requests.sample import SampleOptions
from hebm_sample.cli.requests.words import sample_line
from hebm_sample.cli.work.model import load, progress_bar, with_known_names, within_memory
from hebm_sample.cli.work.outputs import (
    check_grid,
    check_targets,
    energies_of,
    holds,
    refuse_mixed,
    refuse_others,
    save_claiming,
    save_grid,
    save_singles,
    tell,
)
from hebm_sample.cli.work.sharding import BLOCK, Share, unfinished
from hebm_sample.config import CHAINLESS
from hebm_sample.errors import UserInputError
from hebm_sample.io.animation import SECONDS
from hebm_sample.pipeline.provenance import Provenance

if TYPE_CHECKING:
    from PIL.Image import Image

    from hebm_sample.pipeline.outputs import Trajectory
    from hebm_sample.pipeline.pipeline import Pipeline, Samples

__all__ = ["provenance_of", "sample", "single_text"]

Progress = Callable[[int], object]


@dataclass
class _Result:
    """What has become of a request: images for a grid, or files of single images."""

    images: list["Image"] = field(default_factory=list)
    energies: list[list[float]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    trajectory: "Trajectory | None" = None


# Before the work


def _check_outputs(options: SampleOptions) -> None:
    files = (options.image_path(seed) for seed in options.chosen_seeds)
    check_targets(options.grid_path, options.outdir, files if options.outdir else ())


def _check_cut(pipe: "Pipeline", options: SampleOptions) -> None:
    """--keep-top against the model's number of groups."""
    groups = len(pipe.config.generator.latent_shapes)
    most = groups if options.layout == "mix" else groups - 1
    if options.keep_top is not None and options.keep_top > most:
        raise UserInputError(
            f"--keep-top is {options.keep_top}; {pipe.name} has {groups} groups, "
            f"of which 0 to {most} can be kept"
        )


def provenance_of(pipe: "Pipeline", options: SampleOptions) -> Provenance:
    """How the images come about."""
    settings = Provenance.of_samples(pipe, prior=options.prior, **options.settings)
    return settings.saying(**options.facts)


def single_text(options: SampleOptions, provenance: Provenance, seed: int) -> dict[str, str]:
    """What one seed's file says of how it came about."""
    line = sample_line(options, provenance.facts, [seed], None)
    return {**provenance.of_seeds(seed).text(single=True), "command": line}


def _grid_text(
    options: SampleOptions, provenance: Provenance, seeds: Sequence[int]
) -> dict[str, str]:
    line = sample_line(options, provenance.facts, seeds, options.grid_path)
    return {**provenance.of_seeds(*seeds).text(), "command": line}


def _total_steps(pipe: "Pipeline", options: SampleOptions, count: int) -> int:
    """Gradient evaluations of it all, for `count` images."""

    def steps(images: int) -> int:
        return pipe.total_steps(
            num_images=images,
            batch_size=options.batch,
            steps=options.steps,
            prior=options.prior,
        )

    if options.layout == "layers":
        rows = len(pipe.config.generator.latent_shapes)
        return steps(1) + rows * steps(options.layer_columns - 1)
    if options.layout == "variations":
        return steps(1) + steps(count)
    return steps(count) * (options.best_of or 1)


def _grid_shape(pipe: "Pipeline", options: SampleOptions, count: int) -> tuple[int, int | None]:
    """(images, columns) of what goes onto one grid."""
    groups = len(pipe.config.generator.latent_shapes)
    if options.layout == "layers":
        return groups * options.layer_columns, options.layer_columns
    if options.layout == "mix":
        columns = 1 if options.keep_top is not None else groups + 1
        return columns, columns
    if options.layout == "trajectory":
        facts, prior = provenance_of(pipe, options).facts, pipe.config.prior
        levels = prior.num_levels if prior is not None else 1
        columns = facts["steps"] if facts["sampler"] in CHAINLESS else levels
        return count * columns, columns
    return count, options.columns


# Sampling


def _samples(
    pipe: "Pipeline", options: SampleOptions, seeds: Sequence[int], progress: Progress
) -> "Samples":
    """Whole images of these seeds."""
    best: dict[str, Any] = {} if options.best_of is None else {"best_of": options.best_of}
    best |= {} if options.ranking is None else {"rank_by": options.ranking}
    return pipe(
        seeds=list(seeds),
        prior=options.prior,
        batch_size=options.batch,
        output_type="pil",
        progress=progress,
        **options.settings,
        **options.condition,
        **best,
    )


def _batches(
    pipe: "Pipeline", options: SampleOptions, seeds: Sequence[int], progress: Progress
) -> Iterator["Samples"]:
    """Batch after batch, so that finished images are saved while the next are sampled."""
    source = None
    if options.from_seed is not None:
        source = _samples(pipe, options, [options.from_seed], progress)
    for first in range(0, len(seeds), options.batch):
        some = list(seeds[first : first + options.batch])
        if source is None:
            yield _samples(pipe, options, some, progress)
            continue
        yield pipe.vary(
            source,
            slice(0, options.keep_top),
            len(some),
            seeds=some,
            batch_size=options.batch,
            progress=progress,
            **options.settings,
            **options.condition,
        )


def _layers(pipe: "Pipeline", options: SampleOptions, progress: Progress) -> _Result:
    samples = pipe.layers(
        options.chosen_seeds[0],
        options.layer_columns,
        batch_size=options.batch,
        progress=progress,
        **options.settings,
        **options.condition,
    )
    return _Result(samples.images, energies_of(samples))


def _mixed(pipe: "Pipeline", options: SampleOptions, progress: Progress) -> _Result:
    """The two seeds' images mixed at each cut; energies are of the two."""
    samples = _samples(pipe, options, options.chosen_seeds, progress)
    coarse, fine = (tuple(group[i : i + 1] for group in samples.latents) for i in (0, 1))
    cuts = range(len(coarse) + 1) if options.keep_top is None else [options.keep_top]
    images = [pipe.mix(coarse, fine, cut, decoder=options.decoder)[0] for cut in cuts]
    return _Result(images, energies_of(samples))


def _trajectory(
    pipe: "Pipeline", options: SampleOptions, seeds: Sequence[int], progress: Progress
) -> _Result:
    """The images after each level, and at last as they are."""
    trajectory = pipe.trajectory(
        seeds=list(seeds),
        batch_size=options.batch,
        progress=progress,
        **options.settings,
        **options.condition,
    )
    energies = energies_of(trajectory.samples)
    return _Result(energies=energies, trajectory=trajectory)


def _singles(
    pipe: "Pipeline",
    options: SampleOptions,
    seeds: Sequence[int],
    provenance: Provenance,
    progress: Progress,
) -> _Result:
    """Images of seeds; with --outdir each batch is saved as soon as it is there."""
    result = _Result()
    for samples in _batches(pipe, options, seeds, progress):
        result.energies += energies_of(samples)
        if options.outdir is None:
            result.images += samples.images
            continue
        paths = [options.image_path(seed) for seed in samples.seeds]
        texts = [single_text(options, provenance, seed) for seed in samples.seeds]
        given = (samples.images, paths, texts, options.scale)
        if result.files:  # the folder is this model's and sampler's by now
            result.files += save_singles(*given)
            continue
        leaving = paths if options.overwrite else []
        result.files += save_claiming(
            options.outdir,
            partial(_refuse_mixed, options, provenance, leaving),
            *given,
        )
    return result


def _refuse_mixed(options: SampleOptions, provenance: Provenance, leaving: Iterable[Path]) -> None:
    """`UserInputError` if --outdir holds images of another model or sampler than these.

    Arguments:
        leaving: Files that are looked at, or written over, anyway.
    """
    assert options.outdir is not None
    one = single_text(options, provenance, options.chosen_seeds[0])
    refuse_mixed(options.outdir, options.image_names, one, leaving, options.overwrite)


def _work(
    pipe: "Pipeline", options: SampleOptions, seeds: Sequence[int], provenance: Provenance
) -> tuple[_Result, int]:
    """Sample and save; also the number of images."""
    _check_cut(pipe, options)
    count, columns = _grid_shape(pipe, options, len(seeds))
    if options.outdir is None:
        side = provenance.facts["resolution"] * (options.scale or 1)
        alone, moves = options.layout not in ("layers", "mix", "trajectory"), options.is_animated
        across = None if moves else columns
        check_grid(options.grid_path, len(seeds) if moves else count, side, across, alone=alone)
    total = _total_steps(pipe, options, len(seeds))
    with (
        progress_bar(total, pipe.name, options.quiet) as progress,
        within_memory(options.batch),
    ):
        if options.layout == "layers":
            result = _layers(pipe, options, progress)
        elif options.layout == "mix":
            result = _mixed(pipe, options, progress)
        elif options.layout == "trajectory":
            result = _trajectory(pipe, options, seeds, progress)
        else:
            result = _singles(pipe, options, seeds, provenance, progress)
    if options.outdir is None:
        text = _grid_text(options, provenance, seeds)
        result.files = _save(result, columns, options, text)
    return result, count


def _save(
    result: _Result, columns: int | None, options: SampleOptions, text: dict[str, str]
) -> list[Path]:
    path = options.grid_path
    if result.trajectory is None:
        return save_grid(result.images, columns, path, text, options.scale)
    if options.is_animated:
        result.trajectory.save(path, options.seconds or SECONDS, text, overwrite=True)
    else:
        from hebm_sample.io.images import save_image

        save_image(result.trajectory.grid(), path, text)
    return [path]


# All of it


def _prepared(options: SampleOptions, share: Share) -> tuple["Pipeline", SampleOptions]:
    """The model, and the options with what only it can say."""
    pipe = load(options, share.device(options.device))
    pipe.compile_chains, options = options.compiled, with_known_names(options, pipe)
    if not options.batch:
        from hebm_sample.pipeline.runtime.batch_size import fitting_batch

        typed = {"sampler": options.sampler, "temperature": options.temperature}
        particles = pipe.sampling_config(**typed, particles=options.particles).particles
        options = replace(options, batch=fitting_batch(pipe.model, particles))
    return pipe, options


def sample(options: SampleOptions) -> None:
    """Sample what the options ask for, save it, and tell."""
    start = time.perf_counter()
    share = Share.from_environment()
    refuse(
        share.size > 1 and options.outdir is None,
        f"WORLD_SIZE is {share.size}: several processes share the seeds and write one file an "
        "image; give --outdir",
    )
    _check_outputs(options)
    block = options.batch or BLOCK
    pipe, options = _prepared(options, share)
    provenance = provenance_of(pipe, options)
    chosen = list(options.chosen_seeds)
    with ExitStack() as stack:
        stopped = False
        if options.outdir is not None:
            chosen = share.take(chosen, block)
            stopped = stack.enter_context(unfinished(options.outdir, share))

        seeds = _left(options, provenance, chosen, stopped)
        result, count = _work(pipe, options, seeds, provenance) if seeds else (_Result(), 0)
    _tell(options, result, (seeds, len(chosen) - len(seeds), count), provenance, start)


def _left(
    options: SampleOptions, provenance: Provenance, chosen: list[int], stopped: bool
) -> list[int]:
    """The seeds to sample: without those whose files are there, if the run before was stopped or
    --skip-existing says so. Files that were made otherwise are not overwritten unasked.
    """
    if options.outdir is None:
        if options.out is None:
            text = _grid_text(options, provenance, chosen)
            refuse_others(options, {options.grid_path: text})
        return chosen
    texts = {seed: single_text(options, provenance, seed) for seed in chosen}
    files = {options.image_path(seed): text for seed, text in texts.items()}
    refuse_others(options, files)
    _refuse_mixed(options, provenance, files)
    if not (options.skip_existing or stopped):
        return chosen
    return [seed for seed in chosen if not holds(options.image_path(seed), texts[seed])]


def _tell(
    options: SampleOptions,
    result: _Result,
    numbers: tuple[list[int], int, int],
    provenance: Provenance,
    start: float,
) -> None:
    """`numbers`: the seeds, how many were there already, and the number of images."""
    seeds, skipped, count = numbers
    answer = {"seeds": seeds, "skipped": skipped, "energies": result.energies, **provenance.facts}
    more = f", {skipped} already there" if skipped else ""
    where = options.outdir or options.grid_path
    tell(options, result.files, count, answer, where=where, start=start, more=more)
