"""The model behind a command: loading it, memory, progress.

torch is imported when a model is loaded and not before.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from hebm_sample.cli.requests.base import CommandOptions, SteeringOptions
from hebm_sample.cli.requests.grammar import known_values, known_word
from hebm_sample.errors import EnvironmentFailure

if TYPE_CHECKING:
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["load", "progress_bar", "with_known_names", "within_memory"]

_O = TypeVar("_O", bound=SteeringOptions)
_Pairs = tuple[tuple[str, tuple[str, ...]], ...]
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


def with_known_names(options: _O, pipe: "Pipeline") -> _O:
    """The options, their condition in the model's own spelling: `blond hair=1` is Blond_Hair=yes.

    What the model does not know stays as it was typed; the pipeline says what there is.
    """
    if not (options.classes or options.attributes):
        return options
    symbols = pipe.symbols

    def condition(pairs: _Pairs) -> _Pairs:
        names = [known_word(name, symbols) for name, _ in pairs]
        return tuple(
            (name, known_values(values, symbols.get(name, ())))
            for name, (_, values) in zip(names, pairs, strict=True)
        )

    guidance = tuple((name and known_word(name, symbols), w) for name, w in options.guidance)
    return replace(
        options,
        classes=condition(options.classes),
        attributes=condition(options.attributes),
        guidance=guidance,
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
