"""How long a measurement will take, from a few images sampled and read before it begins."""

import time

import torch

from hebm_sample.evaluation.context import EvaluationContext, clock

__all__ = ["expected_line", "in_words"]

PROBED_IMAGES = 8


def expected_line(context: EvaluationContext) -> str:
    """What the distances have to do, and about how long that takes here; features come on top.

    A chain of `PROBED_IMAGES` images is run, and they are decoded and read again.
    """
    count, samples = context.num_images, context.held_out
    few = min(PROBED_IMAGES, count, context.batch_size)
    sampled, read, steps = _probed(context, few)
    seconds, work = sampled * count / few, f"{count:,} samples of {steps} gradients"
    if samples is not None:
        seconds += read * 2 * count / few
        work += f", {2 * count:,} images to read"
    return f"{work}: about {in_words(seconds)}, and the features; less where some were kept"


def _probed(context: EvaluationContext, few: int) -> tuple[float, float, int]:
    """Seconds to sample and to read a few images, and the gradients of a chain."""
    pipe, device = context.pipe, context.pipe.device
    steps = pipe.sampling_config(**context.sampling).steps
    how = {"batch_size": few, "output_type": "torch", "progress": False}
    pipe(1, steps=None, prior="gaussian", progress=False)  # what is loaded once is loaded now
    begun = clock(device)
    images: torch.Tensor = pipe(few, **how, **context.sampling).images
    sampled = clock(device)
    if context.held_out is None:
        return sampled - begun, 0.0, steps
    pipe.decode(pipe.encode(images, batch_size=few), batch_size=few)
    return sampled - begun, time.perf_counter() - sampled, steps


def in_words(seconds: float) -> str:
    """12 s, 3 min, 1.5 h."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return (
                f"{seconds / size:.2g} {unit}"
                if seconds < 10 * size
                else (f"{seconds / size:.0f} {unit}")
            )
    return f"{max(1.0, seconds):.0f} s"
