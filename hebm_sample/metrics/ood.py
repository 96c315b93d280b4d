"""Out-of-distribution detection: does a score tell other pictures from those like the training
data?

    energy of the top k groups   -F_G(u), G = the k coarsest groups, u ~ q(u | x); every k
    likelihood                   -ELBO in nats
    compression                  bytes of the picture as PNG: no model at all
    likelihood less compression  -ELBO - 8 log 2 bytes (Serrà et al. 2020)

All are large for what is strange. AUROC = P(score of another picture > score of a held-out one).
A likelihood is known to prefer smooth pictures of any kind; the compression column says how much
of a figure that explains.
"""

import io
import math
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageFilter

from hebm_sample.config import require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.generator.hierarchy import Latents, check_latents
from hebm_sample.metrics.ranks import Figure, auroc
from hebm_sample.pipeline import Pipeline
from hebm_sample.prior.conditional import net_level
from hebm_sample.prior.schedule import DiffusionSchedule

__all__ = ["corruptions", "png_bytes", "scores", "separations", "top_group_energies"]

NOISE_LEVEL = 40.0  # standard deviation, on 0 to 255
BLUR_SHARE = 1 / 16  # radius, of the side


def corruptions(images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """The same pictures, uint8 (N, 3, S, S), spoilt: noise, blur, one colour, inverted."""
    rng = np.random.default_rng(seed)
    noisy = images + NOISE_LEVEL * rng.standard_normal(images.shape, dtype=np.float32)
    radius = max(1.0, images.shape[-1] * BLUR_SHARE)
    blurred = [
        np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(radius)))
        for x in images.transpose(0, 2, 3, 1)
    ]
    colour = images.mean(axis=(2, 3), keepdims=True)
    return {
        "noise": noisy.clip(0, 255).round().astype(np.uint8),
        "blur": np.ascontiguousarray(np.stack(blurred).transpose(0, 3, 1, 2)),
        "one colour": np.broadcast_to(colour.round(), images.shape).astype(np.uint8),
        "inverted": (255 - images).astype(np.uint8),
    }


def png_bytes(images: np.ndarray) -> np.ndarray:
    """Size of each picture, uint8 (N, 3, S, S), as an optimised PNG, (N,)."""
    sizes = []
    for image in images.transpose(0, 2, 3, 1):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", optimize=True)
        sizes.append(buffer.tell())
    return np.array(sizes, dtype=np.float64)


@torch.no_grad()
def top_group_energies(pipe: Pipeline, u: Latents, batch_size: int = 50) -> np.ndarray:
    """-F_G at the lowest noise level for G = the top 1, 2, ... L groups, (N, L); the nets run
    once.
    """
    require_integer("batch_size", batch_size, 1, 2**31)
    prior, config = pipe.prior, pipe.config.prior
    if prior is None or config is None:
        raise UserInputError(f"{pipe.name} has no energy-based prior, so no energies")
    count = check_latents(u, pipe.generator.latent_shapes)
    level = float(net_level(DiffusionSchedule(config.levels), 0, config.parametrization))
    tops = [list(range(k + 1)) for k in range(len(u))]
    parts = []
    for i in range(0, count, batch_size):
        rows = tuple(g[i : i + batch_size].to(pipe.device, torch.float32) for g in u)
        levels = torch.full((len(rows[0]),), level, device=pipe.device)
        outputs = prior.outputs(pipe.generator.transform(rows), levels)
        parts.append(torch.stack([-prior.select(outputs, g) for g in tops], dim=1).cpu())
    return torch.cat(parts).double().numpy()


def scores(energies: np.ndarray, nats: np.ndarray, bytes_: np.ndarray) -> dict[str, np.ndarray]:
    """The module's table: name to (N,), large for what is strange.

    Arguments:
        energies: (N, L), as `top_group_energies` gives them.
        nats: -ELBO, (N,).
        bytes_: As `png_bytes` gives them.
    """
    groups = energies.shape[1]
    named = {f"energy, top {k + 1} of {groups}": energies[:, k] for k in range(groups)}
    return named | {
        "likelihood": nats,
        "compression": bytes_,
        "likelihood less compression": nats - 8 * math.log(2) * bytes_,
    }


def separations(
    own: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> dict[str, Figure]:
    """AUROC a score: of the data set's own held-out pictures against others."""
    return {name: auroc(own[name], other[name]) for name in own}
