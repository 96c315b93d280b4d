r"""The sharp image decoder: h_{L+1} to an image, trained further with T and encoder frozen.

    h = h_{L+1}(u),    u ~ q(u | x) for half of a step's images,
                       u ~ p(u), the energy-based prior, for the other half
    y = decoder(h)

What latents of a low rate no longer carry is the decoder's to invent; since nothing else changes,
prior, attributes, edits and seeds stay. On reconstructions all losses of `decoding/adversary.py`
count. Samples have no image to compare with, but p(x | h) says what it would be like; theirs are

    a E |y - x| + d E (y - x)^2 + c softplus(-D(y)) / s,    x ~ p(x | h)

Without the expectations nothing holds them: what a discriminator dislikes about a face that is not
whole, dots do not mend, but they are what the decoder then tries. The likelihood's own decoder
stays beside it: bits, inpainting and likelihood scores are its.

A plan may compare pixels through a blur B, |B(y) - B(x)| and so on: what is finer than the encoder
reads no latents can say, and is the discriminator's alone. In the expectations B(m) then takes m's
place, with the scale of single pixels: an upper bound, since p(x | h) does not say how errors of
neighbours go together; so samples are held less firmly than reconstructions.

Large images are trained on random squares of h, with a margin that is computed and cut off: what
lies beyond it hardly reaches the square. What the discriminator sees is moved by some pixels.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hebm_sample.generator.encoder import Encoder, encode
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.generator.likelihood import LogisticOutput
from hebm_sample.latents import Latents
from hebm_sample.presets.preset import DecoderPlan
from hebm_sample.training.decoding.adversary import (
    Discriminator,
    Response,
    feature_distance,
    gradient_penalty,
)
from hebm_sample.training.elbo import standard_normal
from hebm_sample.training.optim import Part, Rows, Stream

__all__ = ["DecoderObjective", "SharpDecoder", "expected_errors", "sharpness"]

ALONE, RAMP = 0.03, 0.02  # shares of the run: the decoder learns pixels alone; the others' rise
PENALIZED = 4  # as many of either kind as one image in so many have their gradient penalised
MARGIN = 2  # positions of h around a square
FLAT = 50.0  # sum over an image of root mean square slopes, below which there is no opinion yet


class SharpDecoder(nn.Module):
    """What learns: the decoder, and the discriminator it learns from.

    Arguments:
        decoder: h_{L+1} to images; changed.
        size: Side of the images, or squares of them, that the discriminator sees.
        rate: The discriminator's learning rate, which stays, over the decoder's highest.
    """

    def __init__(
        self, decoder: nn.Module, size: int, channels: int = 3, rate: float = 1.0
    ) -> None:
        super().__init__()
        self.decoder, self.rate = decoder, rate
        self.discriminator = Discriminator(size, channels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser, each with the factor of its learning rate."""
        return [
            {"params": list(self.decoder.parameters()), "factor": 1.0},
            {
                "params": list(self.discriminator.parameters()),
                "factor": self.rate,
                "steady": True,  # it must be able to follow the decoder to the end
            },
        ]


def _own(stream: Stream) -> torch.Generator | None:
    """The stream of a whole batch, for what is the same in all its rows."""
    return stream.generator if isinstance(stream, Rows) else stream


def _integers(high: int, count: int, device: torch.device, stream: Stream) -> Tensor:
    """`count` numbers below `high`, those of the stream's own rows."""
    if not isinstance(stream, Rows):
        return torch.randint(high, (count,), device=device, generator=stream)
    whole = torch.randint(high, (stream.total,), device=device, generator=stream.generator)
    return whole[stream.first : stream.first + count]


def shifted(
    images: Tensor, most: int, stream: torch.Generator | None
) -> Callable[[Tensor], Tensor]:
    """A map of images (N, C, S, S) to the same, moved by up to `most` pixels each way, mirrored at
    their border: one random place for all that it is given.

    A discriminator has a grid of its own, that of its strides; of images that lie otherwise each
    time it can neither reward a texture in its own grid nor learn the images by heart. After Zhao
    et al., "Differentiable Augmentation for Data-Efficient GAN Training" (arXiv 2006.10738).

    Arguments:
        images: Of the kind that is mapped.
    """
    most, side = min(most, images.shape[-1] - 1), images.shape[-1]
    if most == 0:
        return lambda x: x
    # Places stay on the device, so that a GPU's steps can be captured.
    start = torch.randint(2 * most + 1, (2, 1), device=images.device, generator=stream) - most
    places = (start + torch.arange(side, device=images.device)).abs()
    rows, columns = (side - 1) - ((side - 1) - places).abs()
    return lambda x: x.index_select(2, rows).index_select(3, columns)


def expected_errors(output: LogisticOutput, off: Tensor) -> tuple[Tensor, Tensor]:
    """E |y - x| and E (y - x)^2 for x ~ p(x | h), a logistic distribution of mean m and scale b,
    means over y - m (B, C, S, S):

        E |y - x| = y - m + 2 b log(1 + exp(-(y - m) / b)),    E (y - x)^2 = (y - m)^2 + var x
    """
    scale = output.likelihood.log_scale.exp().view(1, -1, 1, 1)
    error = off + 2 * scale * F.softplus(-off / scale)
    return error.mean(), (off.square() + output.variance).mean()


def gaussian(deviation: float) -> Tensor:
    """Weights of a Gaussian kernel of that standard deviation, cut at three of them, (K,); just 1
    for 0.
    """
    reach = math.ceil(3 * deviation)
    places = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (places / max(deviation, 1e-6)).square())
    return weights / weights.sum()


def blurred(images: Tensor, kernel: Tensor) -> Tensor:
    """Images (B, C, S, S) under a symmetric kernel (K,) in both directions, the image mirrored at
    its border.
    """
    if (reach := len(kernel) // 2) == 0:
        return images
    channels, weights = images.shape[1], kernel.to(images.dtype)
    images = F.pad(images, (reach,) * 4, mode="reflect")
    for shape in ((1, -1), (-1, 1)):
        filters = weights.view(1, 1, *shape).expand(channels, 1, *weights.view(shape).shape)
        images = F.conv2d(images, filters, groups=channels)
    return images.float()


def sharpness(images: Tensor) -> Tensor:
    """Mean absolute Laplacian of images (B, C, S, S): how much there is of edges and texture."""
    kernel = images.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    channels = images.shape[1]
    return F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels).abs().mean()


class DecoderObjective(nn.Module):
    """Gradients of decoder and discriminator at once, each of its own loss.

    Arguments:
        generator, encoder: Frozen; T and q(u | x).
        learner: What learns.
        plan: Weights of the losses (a, b, c and gamma of `decoding/adversary.py`), and the square.
        pool: Latents of samples of the prior, (N, C_i, H_i, W_i) per group; None trains on
            reconstructions alone.
    """

    divisible = True  # draws are a row's own, or of the whole batch
    kernel: Tensor  # of the blur, (K,)

    def __init__(
        self,
        generator: HierarchicalGenerator,
        encoder: Encoder,
        learner: SharpDecoder,
        plan: DecoderPlan,
        pool: Latents | None = None,
    ) -> None:
        super().__init__()
        self.generator = generator.requires_grad_(False)
        self.encoder = encoder.requires_grad_(False)
        self.learner = learner.requires_grad_(True)  # it may be a part of the generator
        self.plan, self.pool = plan, pool
        self.register_buffer("kernel", gaussian(plan.blur), persistent=False)

    @torch.no_grad()
    def states(self, images: Tensor, stream: Stream) -> tuple[Tensor, Tensor | None]:
        """h_{L+1} of reconstructions (B, W, H, H), and of as many samples if there is a pool."""
        noise = standard_normal(self.generator.latent_shapes, len(images), images.device, stream)
        own = encode(self.generator, self.encoder, images, noise).top.features
        if self.pool is None:
            return own, None
        count = len(self.pool[0])
        rows = _integers(count, len(images), images.device, stream)
        drawn = tuple(g[rows.to(g.device)].to(images.device).float() for g in self.pool)
        return own, self.generator.transform(drawn).features

    def decoded(
        self, h: Tensor, images: Tensor, stream: Stream
    ) -> tuple[Tensor, Tensor, LogisticOutput]:
        """What the decoder makes of h (N, W, H, H), first of reconstructions; `images` (B, C, S,
        S), B <= N; and p(x | h) of the N - B samples: all cut to one random square.
        """
        side, count = h.shape[-1], len(images)
        square = self.plan.square
        windows = kept = cut = [slice(None), slice(None)]
        if square is not None and square < side:
            room = side - square + 1
            where = torch.randint(room, (2,), device=h.device, generator=_own(stream)).tolist()
            scale, windows, kept = images.shape[-1] // side, [], []
            for start in where:
                low, high = max(0, start - MARGIN), min(side, start + square + MARGIN)
                windows.append(slice(low, high))
                kept.append(slice((start - low) * scale, (start - low + square) * scale))
            cut = [slice(s * scale, (s + square) * scale) for s in where]
        h = h[..., windows[0], windows[1]]
        with torch.no_grad():
            wide = self.generator.output(h[count:])
        expected = wide._replace(mean=wide.mean[..., kept[0], kept[1]])
        y = self.learner.decoder(h)[..., kept[0], kept[1]]
        return y, images[..., cut[0], cut[1]], expected

    def differentiate(
        self, part: Part, fraction: float, parameters: Any
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """The gradients of `parameters`, decoder's first, and statistics; the training loop's way
        in. For the arguments see `training/optim.py`.
        """
        own, drawn = self.states(part.images, part.stream)
        count = len(own)
        h = own if drawn is None else torch.cat([own, drawn])
        decoded, x, expected = self.decoded(h, part.images, part.stream)
        # The discriminator sees what was decoded once: from its side, as an image that learns
        # nothing; and the slope of its losses at that image is the decoder's share.
        y = decoded.detach().requires_grad_()
        move = shifted(x, self.plan.shift, _own(part.stream))
        seen, fakes = move(x), move(y)
        response, real = self.learner.discriminator(fakes), self.learner.discriminator(seen)
        loss_d, stats = self.discriminated(seen, fakes, real, response)
        mine = list(self.learner.discriminator.parameters())
        grads_d = torch.autograd.grad(loss_d, mine, retain_graph=True)
        weight = min(max((fraction - ALONE) / RAMP, 0.0), 1.0)
        (toward,) = torch.autograd.grad(response.logits.sum(), y, retain_graph=True)
        opinion, more = self.opinion(response, real, count, toward)
        (slope,) = torch.autograd.grad(weight * opinion, y)
        off = decoded - torch.cat([x, expected.mean]) if drawn is not None else decoded - x
        off = blurred(off, self.kernel)
        error, square = off[:count].abs().mean(), off[:count].square().mean()
        loss_g = self.plan.pixels * error + self.plan.squares * square
        if drawn is not None:
            error, square = expected_errors(expected, off[count:])
            loss_g = loss_g + self.plan.pixels * error + self.plan.squares * square
        pixels = (decoded.detach()[:count] - x).abs().mean()
        others = list(self.learner.decoder.parameters())
        grads_g = torch.autograd.grad((loss_g, decoded), others, (torch.ones_like(loss_g), slope))
        found = dict(zip(map(id, [*others, *mine]), [*grads_g, *grads_d], strict=True))
        loss = loss_g.detach() + weight * opinion.detach() + loss_d.detach()
        return tuple(found[id(p)] for p in parameters), {
            **stats,
            "pixels": pixels.detach(),
            **more,
            "loss": loss,
        }

    def discriminated(
        self, x: Tensor, y: Tensor, real: Response, found: Response
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss, and statistics.

        Arguments:
            x, y: Images, and decoded ones.
            real, found: What it makes of them.
        """
        critic, count = self.learner.discriminator, max(1, len(x) // PENALIZED)
        kinds = len(y) // len(x)  # reconstructions, and maybe samples: some of each
        some = x[:: len(x) // count], y[:: len(y) // max(count, kinds)]
        penalties = [gradient_penalty(critic, v) for v in some]
        loss = F.softplus(-real.logits).mean() + F.softplus(found.logits).mean()
        stats = {
            "discriminator": loss.detach(),
            "logit_real": real.logits.detach().mean(),
            "logit_fake": found.logits.detach().mean(),
            "penalty": penalties[0].detach(),
            "penalty_fake": penalties[1].detach(),
        }
        return loss + 0.5 * self.plan.penalty * (penalties[0] + penalties[1]), stats

    def opinion(
        self, found: Response, real: Response, count: int, toward: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's part of the decoder's loss, and statistics.

        Arguments:
            found, real: As of `discriminated`.
            count: How many of the decoded images are reconstructions; they are the first.
            toward: Its logits' gradients at the decoded images (N, C, S, S), to divide by.
        """
        wanted = [m.detach() for m in real.maps]
        features = feature_distance([m[:count] for m in found.maps], wanted)
        steep = toward.flatten(1).float().norm(dim=1) * math.sqrt(toward[0].numel())
        fooled = F.softplus(-found.logits)
        voice = (fooled / steep.clamp(min=FLAT)).mean()
        loss = self.plan.features * features + self.plan.adversarial * voice
        stats = {"features": features, "adversarial": fooled.mean(), "steepness": steep.mean()}
        return loss, {k: v.detach() for k, v in stats.items()}
