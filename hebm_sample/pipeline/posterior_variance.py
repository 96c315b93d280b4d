"""How wide the posterior is at each coordinate of u, for steps that follow it.

    w = E_x s(x)^2        q(u | x) = N(m(x), s(x)^2)

over images x that the generator makes of u ~ N(0, I), so that no data are needed. Against
images of the data w comes out right where latents are coarse and up to a half too small where
they are fine: shorter steps, the safe side.
"""

import torch

from hebm_sample.generator.encoder import encode
from hebm_sample.generator.protocol import Generator, ImageEncoder
from hebm_sample.latents import Latents
from hebm_sample.sampling.noise import NoiseStreams

__all__ = ["posterior_variance"]

IMAGES = 32


@torch.inference_mode(False)
@torch.no_grad()
def posterior_variance(
    generator: Generator, encoder: ImageEncoder, device: torch.device
) -> Latents:
    """w of every coordinate, (1, C_i, H_i, W_i) a group; the same at every call."""
    noise = NoiseStreams(range(IMAGES), generator.latent_shapes, device=device)
    images = generator(noise.normal()).clamp(-1, 1)
    found = encode(generator, encoder, images, noise.normal())
    return tuple(torch.exp(2 * s).mean(0, keepdim=True).float() for s in found.log_s)
