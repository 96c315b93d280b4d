r"""Inpainting: Langevin on the prior times a measurement likelihood of the known pixels.

Latents that depend on nothing but known pixels are clamped: a cell of group i whose patch of the
image is known altogether keeps u_0 ~ q(u | x) there, as clamped groups do
(`sampling/constraints.py`). The others move under F plus the log likelihood

    log p(known | u_t) = - w Z sqrt( sum_known (x - mean)^2 + n b^2 pi^2 / 3 )
    mean = x(cum_a_t u_t)

of guidance scale Z. n is the number of known values, b^2 pi^2 / 3 the variance of the generator's
logistic likelihood (another kind of generator has its own) and cum_a_t u_t the Gaussian prior's
guess of u_0. "Diffusion Posterior Sampling for General Noisy Inverse Problems" (DPS, arXiv
2209.14687) has a likelihood at such a guess, too, and its step, scaled by one over the error,
is the gradient of a norm. The errors of neighbouring pixels are one error: with their squares
simply summed, the density is so stiff along the coarse latents that chains of this length leave
the finite numbers. A norm, whose gradient does not grow with the error, stays stable. For the same
reason a generator grown to larger images compares what its encoder reads: images averaged to
`encoder_size`, where all pixels of a square are known.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hebm_sample.config import require_range
from hebm_sample.generator.protocol import Generator
from hebm_sample.io.images import prepare_masks
from hebm_sample.latents import Latents
from hebm_sample.pipeline.alignment import caller_level, frame
from hebm_sample.pipeline.conditions import Guidance, Symbols
from hebm_sample.pipeline.editing import (
    check_strength,
    posterior,
    refuse_prior,
    seeded,
    with_edit_steps,
)
from hebm_sample.pipeline.identity import encoder_hash
from hebm_sample.pipeline.model import ImagesLike
from hebm_sample.pipeline.outputs import OutputType, Samples
from hebm_sample.pipeline.request import read_request
from hebm_sample.pipeline.sampler import Sampler
from hebm_sample.prior.density import CumSigma
from hebm_sample.sampling.constraints import LatentConstraint

__all__ = ["KnownPixels", "blend", "blend_weight", "fill_smoothly", "inpaint", "known_cells"]

GUIDANCE_SCALE = 3.0  # Z
RELAXATIONS = 24  # sweeps at each resolution


@torch.inference_mode(False)  # else no chain could be differentiated through what is known
def inpaint(
    sampler: Sampler,
    /,
    images: ImagesLike,
    masks: ImagesLike,
    *,
    symbols: Symbols | None = None,
    guidance: Guidance = 1.0,
    weight: float = 1.0,
    strength: float = 0.9,
    seeds: int | Iterable[int] | None = None,
    batch_size: int = 16,
    output_type: OutputType = "pil",
    align: bool = False,
    face: int | None = None,
    paste_back: bool = False,
    **options: Any,
) -> Samples:
    """Fill in the masked pixels: Langevin on the prior times a likelihood of the known ones.

    Latents that depend on known pixels only are clamped, and the likelihood guides the others as
    in "Diffusion Posterior Sampling for General Noisy Inverse Problems" (arXiv 2209.14687;
    `pipeline/inpainting.py`). The known pixels of the result are the
    image's own, but for a few next to the mask (`blend`).

    Arguments:
        images: N, as for `encode`.
        masks: N, or one for all: white (or True) where a pixel is to be filled in; of the
            image's own size, or the model's. PIL images, paths, or booleans (N, H, W) of torch or
            NumPy.
        symbols, guidance: As of a call.
        weight: Of the known pixels' log likelihood.
        strength: Level to start from, as for `edit`. The masked region begins as a smooth
            filling from what is known around it; less than 1 keeps some of its colours.
        seeds: One per image; 0 ... N-1 if None.
        align, face, paste_back: As of `edit`; masks of a photograph's size are aligned with it,
            booleans (N, H, W), too. Only what a mask covers is pasted, with a band around it that
            fades over a 32nd of the crop's side, and towards the crop's border where the mask
            crosses it; the rest of the photograph stays as it is, to
            the bit, and so does what of a mask lies outside the crop, which a warning says.
        options: `decoder`, `progress` and fields of `LangevinConfig`; steps are `EDIT_STEPS`
            unless said.

    Raises:
        UserInputError: Masks of another size or number; with `align` as `edit` raises it.
    """
    check_strength(strength)
    require_range("weight", weight, 0.0, 1e3)
    refuse_prior(options)
    options = with_edit_steps(options) | {"symbols": symbols, "guidance": guidance}
    model = sampler.model
    framing: dict[str, Any] = {"align": align, "face": face, "paste_back": paste_back}
    framed = frame(model, images, output_type=output_type, **framing)
    x, chosen = seeded(model, framed.images, seeds)
    size = model.config.generator.image_size
    unknown = prepare_masks(framed.masks(masks), framed.images, size, len(x))
    _say_what_masks_cover(unknown, framed.outside(masks))
    facts = {"strength": strength, "weight": weight, "encoder": encoder_hash(model)}
    options["facts"] = facts | framed.facts(face, paste_back)
    filled = fill_smoothly(x, ~unknown)
    request = read_request(model, None, chosen, batch_size=batch_size, **options)
    u = posterior(model, filled, chosen, "sample", batch_size)
    start = model.level_near(strength) if strength < 1 else None
    known = KnownPixels(model.generator, model.cum_sigma_of_level, x, ~unknown, weight)
    cells = known_cells(~unknown, model.generator.latent_shapes)
    constraint = LatentConstraint(u, (), start, cells)
    found = sampler.best(replace(request, constraint=constraint, likelihood=known))
    pasted = blend(found.images, x, unknown)
    samples = sampler.samples(replace(found, images=pasted), request, output_type)
    return framed.pasted(samples, paste_back, framed.photo_masks(masks))


def _say_what_masks_cover(unknown: Tensor, outside: float) -> None:
    """A warning of one line for masks (B, 1, S, S) that leave nothing to do, or nothing known, or
    of which the crop leaves a share out.
    """
    if outside > 0:
        share = f"{outside:.0%}" if outside >= 0.005 else "less than 1%"
        message = f"{share} of the mask lies outside the face's crop and is left as it is"
        warnings.warn(message, stacklevel=caller_level())
    shares = unknown.flatten(1).float().mean(1)
    for share, fault in (
        (0.0, "nothing, so the image comes back as it is"),
        (1.0, "everything, so nothing of the image is known"),
    ):
        if bool((shares == share).any()):
            message = f"the mask covers {fault}; white is filled in, black is known"
            warnings.warn(message, stacklevel=caller_level())


def blend(drawn: Tensor, images: Tensor, unknown: Tensor) -> Tensor:
    """What was drawn where pixels are unknown and the images' own elsewhere, without a seam.

        unknown     drawn + the difference of known pixels around, smoothly continued
        known       x + w (drawn - x), w falling from 1 to 0 over 2 R pixels; R = S / 64, rounded
        beyond      x

    Arguments:
        drawn, images: (B, 3, S, S).
        unknown: (B, 1, S, S) bool.
    """
    weight = blend_weight(unknown, round(images.shape[-1] / 64))
    known = (weight == 0) & ~unknown
    offset = fill_smoothly(images - drawn, known, reach=max(1, images.shape[-1] // 32))
    matched = drawn + torch.where(known, 0.0, offset)
    return torch.where(unknown, matched, images + weight * (matched - images))


def blend_weight(unknown: Tensor, reach: int) -> Tensor:
    """1 where pixels are unknown, falling to 0 over 2 `reach` pixels around: (B, 1, S, S)."""
    if reach == 0:
        return unknown.float()
    grown = F.max_pool2d(unknown.float(), 2 * reach + 1, 1, reach)
    ramp = F.avg_pool2d(grown, 2 * reach + 1, 1, reach, count_include_pad=False)
    return torch.where(unknown, 1.0, ramp)


@dataclass(frozen=True)
class KnownPixels:
    """log p(known pixels | u_t), (B,), of latents and level.

    Arguments:
        generator: The generator.
        cum_sigma_of: What the nets are told about a level, (B,), to cum_sigma (B,).
        images: (B, 3, S, S) in [-1, 1].
        known: (B, 1, S, S) bool.
        weight: w.
    """

    generator: Generator
    cum_sigma_of: CumSigma
    images: Tensor
    known: Tensor
    weight: float = 1.0

    def rows(self, start: int, stop: int) -> "KnownPixels":
        """Of images start ... stop - 1."""
        return replace(self, images=self.images[start:stop], known=self.known[start:stop])

    def repeated(self, count: int) -> "KnownPixels":
        """Each image `count` times, one after another."""
        images, known = (x.repeat_interleave(count, 0) for x in (self.images, self.known))
        return replace(self, images=images, known=known)

    def to(self, device: torch.device) -> "KnownPixels":
        """On another device."""
        return replace(self, images=self.images.to(device), known=self.known.to(device))

    def __call__(self, u: Latents, level: Tensor) -> Tensor:
        """(B,), differentiable in u."""
        sigma = self.cum_sigma_of(level)[:, None, None, None]
        cum_a = (1 - sigma.square()).clamp(min=0).sqrt()
        factor = self.generator.config.encoder_reduction
        top = self.generator.transform(tuple(cum_a * g for g in u))
        output = self.generator.output(top.features)
        mean, images, known = output.mean.float(), self.images, self.known
        if factor > 1:
            mean, images = F.avg_pool2d(mean, factor), F.avg_pool2d(images, factor)
            known = -F.max_pool2d(-known.float(), factor)
        variance = output.variance
        if factor > 1 and variance.shape[-1] > 1:
            variance = F.avg_pool2d(variance, factor)
        square = (images - mean).square() + variance
        # The tiny number keeps the root's slope finite where no pixel is known.
        total = (square * known).flatten(1).sum(1) + 1e-12
        return -self.weight * GUIDANCE_SCALE * total.sqrt()


def fill_smoothly(images: Tensor, known: Tensor, reach: int = 0) -> Tensor:
    """The images with unknown pixels replaced by what goes on smoothly from the known ones around
    them: each the mean of its four neighbours, as of a membrane that is held where it is known.

    Arguments:
        images: (B, C, S, S).
        known: (B, 1, S, S) bool.
        reach: The membrane is held at means over the known pixels up to so far away.
    """
    values, weights = images * known, known.float()
    if reach:
        values = _window_sums(values, reach) / _window_sums(weights, reach).clamp(min=1e-6)
        values = values * known
    return torch.where(known, images, _membrane(values, known))


def _membrane(values: Tensor, known: Tensor) -> Tensor:
    """The solution at every pixel, from that at half of the resolution, which knows what is far.

    Arguments:
        values: (B, C, S, S), 0 where unknown.
        known: (B, 1, S, S) bool.
    """
    side, share = values.shape[-1], known.float()
    if side <= 4 or side % 2:
        total = share.sum((2, 3), keepdim=True).clamp(min=1)
        filled = (values.sum((2, 3), keepdim=True) / total).expand_as(values)
    else:
        part = F.avg_pool2d(share, 2)
        coarse = F.avg_pool2d(values, 2) / part.clamp(min=1e-6)
        half = _membrane(coarse, part > 0)
        filled = F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)
    for _ in range(RELAXATIONS):
        filled = torch.where(known, values, filled)
        at = F.pad(filled, (1, 1, 1, 1), mode="replicate")
        beside = at[..., 1:-1, 2:] + at[..., 1:-1, :-2] + at[..., 2:, 1:-1] + at[..., :-2, 1:-1]
        filled = beside / 4
    return torch.where(known, values, filled)


def _window_sums(maps: Tensor, reach: int) -> Tensor:
    """Over the square of 2 `reach` + 1 around each pixel; rows first, which is faster."""
    width = 2 * reach + 1
    rows = F.avg_pool2d(maps, (1, width), 1, (0, reach), divisor_override=1)
    return F.avg_pool2d(rows, (width, 1), 1, (reach, 0), divisor_override=1)


def known_cells(known: Tensor, shapes: tuple[tuple[int, int, int], ...]) -> tuple[Tensor, ...]:
    """Cells whose patch of the image is known altogether: (B, 1, H_i, W_i) bool per group.

    Arguments:
        known: (B, 1, S, S) bool.
        shapes: (C, H, W) a group.
    """
    side = known.shape[-1]
    return tuple(-F.max_pool2d(-known.float(), side // s[1]) > 0.5 for s in shapes)
