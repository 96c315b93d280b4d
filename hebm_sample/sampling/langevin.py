r"""One Langevin step, and the package's one convention for it.

    u <- u + (s/2) grad_u log p(u) + sqrt(v) eps,        eps ~ N(0, I)

`step_size` is s: *half* of it multiplies the gradient. The noise variance v depends on the kernel:

- `plain`: v = s, as in "Generative Modeling by Estimating Gradients of the Data Distribution"
  (arXiv 1907.05600). On a Gaussian of variance V the chain settles at V / (1 - s/(4V)), too wide.
- `corrected`: v = s (1 - s/(4C)) for a reference variance C and s <= 4C. A Gaussian of variance C
  is exactly invariant, s = 2C draws it independently; one of variance V settles at V (1 - s/(4C))
  / (1 - s/(4V)).

Both need s < 4V for the narrowest direction V of the target: beyond it the mean itself diverges.
log p holds F unscaled. (Networks of the authors' release put out s F; `prior` undoes that.)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hebm_sample.config import Kernel
from hebm_sample.errors import UserInputError
from hebm_sample.latents import Latents, Scalar, flatten, per_example, unflatten
from hebm_sample.prior.density import row_norm, value_and_grad

__all__ = ["LogDensity", "StepInfo", "langevin_step", "noise_scale", "score"]

LogDensity = Callable[[Latents], Tensor]
"""Latents to log p (B,); of those that have a `value_and_score` it is taken."""


class StepInfo(NamedTuple):
    """Diagnostics of a step, on the latents' device: (B,) each, or (K, B) for a chain of K steps.

    Arguments:
        log_density: log p before the step, without its constant.
        gradient_norm: |grad log p| before the step.
        displacement: |u_after - u_before|.
        acceptance: The probability that the step was accepted with; 1 without Metropolis's
            correction.
    """

    log_density: Tensor
    gradient_norm: Tensor
    displacement: Tensor
    acceptance: Tensor


def score(log_density: LogDensity, u: Latents) -> tuple[Tensor, Tensor]:
    """log p (B,) and its gradient, all groups in one row, (B, D): what a density says of itself,
    or by autograd what its function does.
    """
    own = getattr(log_density, "value_and_score", None)
    if own is not None:
        return own(u)
    values, grads = value_and_grad(log_density, u)
    return values, flatten(grads)


def noise_scale(step_size: Scalar, kernel: Kernel, reference_variance: Scalar) -> Scalar:
    """sqrt(v), the standard deviation of a step's noise.

    Raises:
        UserInputError: the corrected kernel with s > 4 C.
    """
    variance = step_size
    if kernel == "corrected":
        variance = step_size * (1 - step_size / (4 * reference_variance))
    if isinstance(variance, Tensor):
        return variance.clamp(min=0).sqrt()  # a check would wait for the device
    if variance < 0:
        raise UserInputError(
            f"step_size {step_size:g} exceeds 4 C = {4 * reference_variance:g}; "
            "the corrected kernel needs a smaller step_scale"
        )
    return math.sqrt(variance)


def langevin_step(
    u: Latents,
    log_density: LogDensity,
    step_size: Scalar,
    noise: Latents,
    *,
    kernel: Kernel = "corrected",
    reference_variance: Scalar = 1.0,
) -> tuple[Latents, StepInfo]:
    """One step of the module's formula; pure, and without a random source of its own.

    Arguments:
        u: (B, C_i, H_i, W_i) a group.
        log_density: Latents to log p (B,), up to a constant.
        step_size: s, one number, (B,), or (1, D), a number for each of the D dimensions of u.
        noise: eps, shaped like `u`.
        kernel: "corrected" or "plain".
        reference_variance: C of the corrected kernel, shaped as `step_size` may be; `plain` has no
            use for it.

    Returns:
        The new latents, detached, and the step's diagnostics.

    Raises:
        UserInputError: the corrected kernel with s > 4 C.

    On N(0, I), whose gradient is -u, a step without noise leaves 1 - s/2 of u:

    >>> u, still = (torch.ones(1, 1, 1, 1),), (torch.zeros(1, 1, 1, 1),)
    >>> moved, _ = langevin_step(u, lambda u: -flatten(u).square().sum(1) / 2, 0.5, still)
    >>> float(moved[0])
    0.75
    """
    scale = noise_scale(step_size, kernel, reference_variance)
    with torch.inference_mode(False), torch.no_grad():
        log_p, gradient = score(log_density, u)
        row = flatten(u)
        drift = per_example(0.5 * step_size, row) * gradient
        moved = row + drift + per_example(scale, row) * flatten(noise)
        moves = row_norm(moved - row)
        info = StepInfo(log_p, row_norm(gradient), moves, torch.ones_like(log_p))
        return unflatten(moved, u), info
