"""How wide the posterior is at each coordinate of u, for steps that follow it.

    w = E_x s(x)^2                q(u | x) = N(m(x), s(x)^2)
    w = E_x Var(u_i | x, u_<i)    with flows, of draws

over images x that the generator makes of u ~ N(0, I), so that no data are needed. Against
images of the data w comes out right where latents are coarse and up to a half too small where
they are fine: shorter steps, the safe side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hebm_sample.generator.encoder import encode
from hebm_sample.generator.protocol import Generator, ImageEncoder
from hebm_sample.latents import Latents, exact
from hebm_sample.sampling.noise import NoiseStreams

__all__ = ["posterior_variance"]

IMAGES = 32
MOST_SIDE = 64  # of images that are decoded all at a time; of larger ones as many pixels
DRAWS = 16  # of u_i for each image, where there are flows


@torch.inference_mode(False)
@torch.no_grad()
def posterior_variance(
    generator: Generator, encoder: ImageEncoder, device: torch.device
) -> Latents:
    """w of every coordinate, (1, C_i, H_i, W_i) a group; the same at every call."""
    most = max(1, IMAGES * MOST_SIDE**2 // generator.config.image_size**2)
    runs = [range(IMAGES)[i : i + most] for i in range(0, IMAGES, most)]
    parts = [_of_seeds(generator, encoder, seeds, device) for seeds in runs]
    if len(parts) == 1:
        return parts[0]
    weighted = [tuple(len(s) * g for g in part) for s, part in zip(runs, parts, strict=True)]
    return tuple(torch.stack(column).sum(0) / IMAGES for column in zip(*weighted, strict=True))


def _of_seeds(
    generator: Generator, encoder: ImageEncoder, seeds: Sequence[int], device: torch.device
) -> Latents:
    """w over the images of some seeds."""
    noise = NoiseStreams(seeds, generator.latent_shapes, device=device)
    images = generator(noise.normal()).clamp(-1, 1)
    if not encoder.normal:
        draws = [noise.normal() for _ in range(DRAWS)]
        return _variance_of_draws(generator, encoder, images, draws)
    found = encode(generator, encoder, images, noise.normal())
    return tuple(torch.exp(2 * s).mean(0, keepdim=True).float() for s in found.log_s)


def _variance_of_draws(
    generator: Generator, encoder: ImageEncoder, images: Tensor, draws: Sequence[Latents]
) -> Latents:
    """E_x Var(u_i | x, u_<i); the first of the draws is what the next group follows."""
    maps, found = encoder.features(images), []

    def choose(i: int, h: Tensor, mu: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
        several = [encoder.posterior(i, maps, h, mu, log_sigma, noise[i]) for noise in draws]
        u = torch.stack([exact(group.u) for group in several])
        found.append(u.var(0).mean(0, keepdim=True).float())
        return several[0].u, several[0].z

    generator.descend(len(images), choose, features=False)
    return tuple(found)
