"""The model behind a command: loading it, memory, progress.

torch is imported when a model is loaded and not before.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hebm_sample.cli.requests.base import CommandOptions
from hebm_sample.errors import EnvironmentFailure

if TYPE_CHECKING:
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["load", "progress_bar", "within_memory"]

_CPU_MEMORY = "can't allocate memory"


def load(options: CommandOptions, device: str | None = None) -> "Pipeline":
    """The model that --dataset names, on `device` or on --device."""
    if options.quiet or not sys.stderr.isatty():
        # huggingface_hub reads this when it is imported, which is not before the next lines.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch

    from hebm_sample.pipeline.pipeline import Pipeline

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
