"""What samplers, energies, edits and training know of a generator, whatever its kind.

    T: u -> (z, u, h)              `Generator.transform`, its inverse on z `Generator.inverse`
    h_{L+1} -> p(x | h_{L+1})      `Generator.output`, whose mean is `Generator.decode`
    x -> maps -> q(u | x)          `ImageEncoder.features`, `ImageEncoder.posterior`

A kind writes `descend`, `output` and the encoder's methods; the rest follows.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hebm_sample.config import DecoderName
from hebm_sample.errors import UserInputError
from hebm_sample.latents import Latents, Shapes, check_latents

__all__ = [
    "Choose",
    "Generator",
    "GroupDraw",
    "ImageDistribution",
    "ImageEncoder",
    "Maps",
    "Posterior",
    "TopDown",
    "at_least_float32",
    "in_float32",
]

Choose = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(i, h_i, mu_i, log_sigma_i) to (u_i, z_i)."""

Maps = dict[int, Tensor]
"""Bottom-up maps of images by the encoder's own keys."""


class TopDown(NamedTuple):
    """What T returns: per group z_i, u_i and the state h_i that met them; `features` is
    h_{L+1}.
    """

    z: Latents
    u: Latents
    h: Latents
    features: Tensor


class ImageDistribution(Protocol):
    """p(x | h_{L+1}) of a batch."""

    @property
    def mean(self) -> Tensor:
        """(B, 3, S, S), about [-1, 1]."""
        ...

    @property
    def variance(self) -> Tensor:
        """Of each value, to broadcast with (B, 3, S, S)."""
        ...

    def log_prob(self, images: Tensor) -> Tensor:
        """log p(x | h_{L+1}) in nats, (B,), of images (B, 3, S, S) in [-1, 1]."""
        ...


class Generator(nn.Module):
    """A hierarchy z_i = mu_i(h_i) + sigma_i(h_i) u_i and an image decoder below it.

    Attributes:
        checkpointing: Keep only what passes between groups for gradients, and compute the rest
            again: less memory, one forward pass more.
    """

    config: Any
    checkpointing: bool = False

    @property
    def latent_shapes(self) -> Shapes:
        """(C, H, W) of each group, top to bottom."""
        return self.config.latent_shapes

    def descend(self, batch: int, choose: Choose, *, features: bool = True) -> TopDown:
        """Walk the hierarchy, asking for each group's latents on the way.

        Arguments:
            batch: B.
            choose: (i, h_i, mu_i, log_sigma_i) to (u_i, z_i).
            features: Compute h_{L+1}, which only the image decoder reads; else `features` of the
                result is the last group's own state h_L.
        """
        raise NotImplementedError

    def through(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """`block(*inputs)`, for `descend` to call its blocks by."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        # Nothing in T is random, so there is no random state to keep.
        found = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return cast("Tensor", found)

    def output(self, features: Tensor) -> ImageDistribution:
        """p(x | h_{L+1}) of features (B, W, H, W)."""
        raise NotImplementedError

    def transform(self, u: Latents, *, features: bool = True) -> TopDown:
        """T: z_i = mu_i(h_i) + sigma_i(h_i) u_i for every group, without the image decoder.

        Arguments:
            u: Latents of `latent_shapes`; raises `UserInputError` if they are not.
            features: As of `descend`.
        """
        return self.descend(
            check_latents(u, self.latent_shapes),
            lambda i, h, mu, log_sigma: (u[i], mu + log_sigma.exp() * u[i]),
            features=features,
        )

    def inverse(self, z: Latents) -> Latents:
        """u with T(u).z = z: u_i = (z_i - mu_i(h_i)) / sigma_i(h_i), in float32."""
        batch = check_latents(z, self.latent_shapes)
        with in_float32(z[0].device):
            return self.descend(
                batch,
                lambda i, h, mu, log_sigma: ((z[i] - mu) * torch.exp(-log_sigma), z[i]),
            ).u

    def decode(self, features: Tensor) -> Tensor:
        """The mean image of h_{L+1}: (B, 3, S, S), about [-1, 1]."""
        return self.output(features).mean

    @property
    def decoders(self) -> tuple[DecoderName, ...]:
        """The image decoders that there are, the one that shows images first."""
        return ("likelihood",)

    def chosen_decoder(self, decoder: DecoderName | None = None) -> DecoderName:
        """The decoder itself, or if None the one that shows images.

        Raises:
            UserInputError: A decoder that the generator has not.
        """
        if decoder is not None and decoder not in self.decoders:
            raise UserInputError(
                f"decoder is {decoder!r}; this model has {', '.join(map(repr, self.decoders))}"
            )
        return decoder or self.decoders[0]

    def render(self, features: Tensor, decoder: DecoderName | None = None) -> Tensor:
        """The image of h_{L+1} that is shown: (B, 3, S, S), about [-1, 1].

        Arguments:
            decoder: "likelihood", whose images are `decode`'s, or "sharp"; the first of `decoders`
                if None.

        Raises:
            UserInputError: A decoder that the generator has not.
        """
        self.chosen_decoder(decoder)
        return self.decode(features)

    def forward(self, u: Latents) -> Tensor:
        """Mean images (B, 3, S, S) of u."""
        return self.decode(self.transform(u).features)


class GroupDraw(NamedTuple):
    """One group's draw of q(u_i | x, u_<i), and the normal distribution it came from.

    Arguments:
        u: u_i, (B, C_i, H_i, W_i) as all of these.
        z: z_i.
        mean, log_s: m_i and log s_i in the units of u, before flows if the posterior has any.
    """

    u: Tensor
    z: Tensor
    mean: Tensor
    log_s: Tensor


class Posterior(NamedTuple):
    """A draw u of q(u | x) with the means m_i and log s_i it came from, and T(u).

    Arguments:
        noise: The standard normal numbers of the draw; None for the means.
    """

    u: Latents
    mean: Latents
    log_s: Latents
    top: TopDown
    noise: Latents | None = None


def at_least_float32(x: Tensor) -> Tensor:
    """What autocast left in half precision, in float32: latents and what they are made of."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """Takes what is computed on the device out of autocast."""
    if device.type == "meta":  # which has none
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class ImageEncoder(nn.Module):
    """Bottom-up maps of images, and from them and T the posterior q(u | x).

    Attributes:
        divides: Whether u is a difference divided by sigma, (z - mu) / sigma: then everything is
            computed in float32, under autocast too, whose rounding would be divided as well.
    """

    config: Any
    divides: bool = False

    @property
    def normal(self) -> bool:
        """Whether q(u_i | x, u_<i) is N(m_i, s_i^2) itself; with flows it is not."""
        return True

    @property
    def map_shapes(self) -> dict[int, tuple[int, int, int]]:
        """(C, H, W) of the maps that `posterior` reads, by key."""
        raise NotImplementedError

    def features(self, images: Tensor) -> Maps:
        """Bottom-up maps.

        Arguments:
            images: (B, 3, S, S) in [-1, 1]; raises `UserInputError` on another shape.
        """
        raise NotImplementedError

    def posterior(
        self, i: int, maps: Maps, h: Tensor, mu: Tensor, log_sigma: Tensor, noise: Tensor | None
    ) -> GroupDraw:
        """A draw of q(u_i | x, u_<i).

        Arguments:
            i: The group.
            maps: What `features` gave.
            h, mu, log_sigma: The top-down state, and p(z_i | z_<i) that follows from it.
            noise: Standard normal, (B, C_i, H_i, W_i); None for the mean.
        """
        raise NotImplementedError

    def kl(self, drawn: Posterior) -> Tensor:
        """KL_i of q(u_i | x, u_<i) and N(0, I) in nats, (B, L)."""
        raise NotImplementedError
