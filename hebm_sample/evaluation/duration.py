"""How long a measurement will take, from a few images sampled and read before it begins."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from hebm_sample.config import EDIT_STEPS
from hebm_sample.evaluation.context import EvaluationContext, clock
from hebm_sample.evaluation.control_results import ControlPlan
from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["expected_control_line", "expected_line", "expected_ood_line", "in_words"]

PROBED_IMAGES = 8


def expected_line(context: EvaluationContext) -> str:
    """What the distances have to do, and about how long that takes here; features come on top.

    A chain of `PROBED_IMAGES` images is run, and they are decoded and read again.
    """
    count, samples = context.num_images, context.held_out
    few = min(PROBED_IMAGES, count, context.batch_size)
    sampled, read, steps = _probed(context.pipe, few, context.sampling, samples is not None)
    seconds, work = sampled * count / few, f"{count:,} samples of {steps} gradients"
    if samples is not None:
        seconds += read * 2 * count / few
        work += f", {2 * count:,} images to read"
    return f"{work}: about {in_words(seconds)}, and the features; less where some were kept"


def expected_control_line(
    pipe: Pipeline,
    plan: ControlPlan,
    columns: Mapping[str, str],
    held_out: int,
    *,
    batch_size: int = 50,
    **sampling: Any,
) -> str:
    """The same of `evaluation.control`, less the training of a classifier.

    Arguments:
        columns: Variable to label column.
        held_out: Number of images.
        sampling: Fields of `LangevinConfig` in place of the model's own, None for what stays.
    """
    settings = {k: v for k, v in sampling.items() if v is not None}
    few = min(PROBED_IMAGES, plan.num_images, batch_size)
    sampled, read, steps = _probed(pipe, few, settings, True)
    values = [len(pipe.symbols[name]) for name in plan.attributes or columns]
    most = [1 if count == 2 else count for count in values]  # of two values one is asked for
    weights = len({*plan.guidance} - {0.0})
    conditions = max(most, default=1) + weights * (sum(most) + len(plan.combinations))
    cuts = len(pipe.generator.latent_shapes)
    samples = plan.num_images * conditions + plan.layer_images * (1 + cuts * plan.variations)
    edits = min(plan.edit_images, held_out) if plan.edit else 0
    reads = min(plan.held_out, held_out) + edits
    seconds = (sampled * (samples + edits * EDIT_STEPS / max(1, steps)) + read * reads) / few
    edited = f", {edits:,} edits of {EDIT_STEPS}" if edits else ""
    return (
        f"{samples:,} samples of {steps} gradients{edited}, {reads:,} images to read: about "
        f"{in_words(seconds)}, and the classifier"
    )


def expected_ood_line(context: EvaluationContext, others: int, images: int) -> str:
    """The same of `evaluation.report.ood`, from the scores of a few images of each corruption.

    Arguments:
        others: Sets of other images.
        images: Of each set.
    """
    from hebm_sample.evaluation.report.ood import measure_ood

    few = min(PROBED_IMAGES, context.num_images, max(2, context.batch_size))  # an AUROC needs 2
    held_out = context.held_out_images().rows(0, 2 * few)
    probe = replace(
        context, num_images=few, held_out=held_out, folder=None, progress=False, _made={}
    )
    pipe, device = context.pipe, context.pipe.device
    pipe(1, steps=None, prior="gaussian", progress=False)  # what is loaded once is loaded now
    begun = clock(device)
    sets = len(measure_ood(probe, {}, images=few).figures["counts"])
    seconds = (clock(device) - begun) / (few * (sets + 1))  # held-out images are one more
    total, fitted = images * (sets + others + 1), context.num_images
    return (
        f"scores of {total:,} images in {sets + others + 1} sets, and {fitted:,} that the "
        f"combination is fitted to: about {in_words(seconds * (total + fitted))}"
    )


def _probed(
    pipe: Pipeline, few: int, sampling: Mapping[str, Any], reads: bool
) -> tuple[float, float, int]:
    """Seconds to sample and to read a few images, and the gradients of one."""
    steps, device = pipe.sampling_config(**sampling).gradients, pipe.device
    how = {"batch_size": few, "output_type": "torch", "progress": False}
    pipe(1, steps=None, prior="gaussian", progress=False)  # what is loaded once is loaded now
    begun = clock(device)
    images: torch.Tensor = pipe(few, **how, **sampling).images
    sampled = clock(device)
    if not reads:
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
