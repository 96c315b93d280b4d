"""The model behind a command, and what can go wrong while it runs: loading, memory, progress.

torch is imported when a model is loaded and not before.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hebm_sample import __version__
from hebm_sample.cli.requests import CommandOptions, SteeringOptions
from hebm_sample.errors import EnvironmentFailure, UserInputError

if TYPE_CHECKING:
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = [
    "check_sheet",
    "check_targets",
    "load",
    "model_facts",
    "png_text",
    "progress_bar",
    "sampler_facts",
    "within_memory",
]

_CPU_MEMORY = "can't allocate memory"


def load(options: CommandOptions, device: str | None = None) -> "Pipeline":
    """The model that --dataset names, on `device` or on --device."""
    if options.quiet or not sys.stderr.isatty():
        # huggingface_hub reads this when it is imported, which is not before the next lines.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch

    from hebm_sample.pipeline.pipeline import Pipeline
    from hebm_sample.pipeline.runtime.process import tune_process

    tune_process()
    return Pipeline.from_pretrained(
        options.dataset or "",
        resolution=options.resolution,
        revision=options.revision,
        cache_dir=options.cache_dir,
        local_files_only=options.offline,
        device=device or options.device,
        dtype=getattr(torch, options.dtype),
    )


@contextmanager
def within_memory(batch: int) -> Iterator[None]:
    """A device that has too little memory becomes one line."""
    import torch

    try:
        yield
    except RuntimeError as error:
        # On the CPU torch has no class of its own for it.
        is_memory = isinstance(error, torch.OutOfMemoryError) or _CPU_MEMORY in str(error)
        if not is_memory:
            raise
        raise EnvironmentFailure(
            f"the device has too little memory for --batch {batch}; try a smaller one"
        ) from error


@contextmanager
def progress_bar(total: int, name: str, quiet: bool) -> Iterator[Callable[[int], object]]:
    """Counts gradient evaluations; silent where stderr is no terminal."""
    from tqdm.auto import tqdm

    silent = True if quiet or total == 0 else None  # None: tqdm asks whether it is a terminal
    with tqdm(total=total, desc=name, unit="grad", leave=False, disable=silent) as bar:
        yield bar.update


def check_targets(sheet: Path, folder: Path | None, files: Iterable[Path]) -> None:
    """Find out now, not after minutes of sampling, that the images could not be saved.

    Arguments:
        sheet: Where they go if `folder` is None.
        folder: --outdir.
        files: What would be written to it.
    """
    from hebm_sample.io.images import check_folder, check_writable

    if folder is None:
        check_writable(sheet)
        return
    check_folder(folder)
    for path in files:
        if os.path.lexists(path):
            check_writable(path)


def check_sheet(count: int, resolution: int, columns: int | None = None) -> None:
    """Refuse a sheet that no viewer opens."""
    from hebm_sample.io.images import MAX_PIXELS, grid_size

    width, height = grid_size(count, resolution, resolution, columns)
    if width * height > MAX_PIXELS:
        raise UserInputError(
            f"a grid of {count} images would have {width} x {height} pixels; "
            "use --outdir, or ask for fewer images"
        )


def model_facts(pipe: "Pipeline") -> dict[str, Any]:
    """Where images come from, for the PNG's text and for --json."""
    return {
        "model": pipe.name,
        "resolution": pipe.config.generator.image_size,
        "revision": pipe.revision,
        "version": f"hebm_sample {__version__}",
    }


def sampler_facts(pipe: "Pipeline", options: SteeringOptions) -> dict[str, Any]:
    """How they were sampled."""
    default = pipe.config.sampling
    return {
        "sampler": options.sampler or default.sampler,
        "steps": options.steps or default.steps,
        "temperature": default.temperature if options.temperature is None else options.temperature,
    }


def png_text(facts: Mapping[str, Any], **more: object) -> dict[str, str]:
    """Facts as a PNG's text; None does not apply and is left out."""
    every = {**more, **facts}
    return {key: _shown(value) for key, value in every.items() if value is not None}


def _shown(value: object) -> str:
    """As it would be typed: `Smiling=yes Male=no`, `1.0,0.8`."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value)
