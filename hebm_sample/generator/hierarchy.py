"""The multi-layer top-down generator.

    h_1 = learned constant
    z_i = mu_i(h_i) + sigma_i(h_i) * u_i      u_i ~ N(0, I) without an energy-based prior
    h_{i+1} = block_i(h_i, z_i)               upsampled between scales
    x ~ p(x | h_{L+1})                        an image is its mean

A top-down hierarchy as in "NVAE: A Deep Hierarchical Variational Autoencoder" (arXiv 2007.03898).
T: u -> (z, u, h) is this map without the image decoder. A sampler needs nothing else.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hebm_sample.config import DecoderName, GeneratorConfig, ScaleConfig, StageConfig
from hebm_sample.generator.blocks import Upsample, cells, enlarged, narrow_start
from hebm_sample.generator.likelihood import DiscretizedLogistic, LogisticOutput
from hebm_sample.generator.protocol import Choose, Generator, TopDown, at_least_float32

__all__ = [
    "HierarchicalGenerator",
    "ImageDecoder",
    "TopDown",
    "sharp_decoder",
    "soft_bound",
]


def soft_bound(x: Tensor, bound: float) -> Tensor:
    """x kept in (-bound, bound), with slope 1 at 0."""
    return bound * torch.tanh(x / bound)


class Group(nn.Module):
    """One latent group: mu_i, sigma_i of h_i, and the block that takes z_i in."""

    def __init__(self, scale: ScaleConfig, log_sigma_bound: float) -> None:
        super().__init__()
        self.log_sigma_bound = log_sigma_bound
        # mu = 0 and sigma = 1 at the start: u and z begin as the same thing.
        self.prior = narrow_start(nn.Conv2d(scale.width, 2 * scale.latent_channels, 1), 0.1)
        self.take_in = nn.Conv2d(scale.latent_channels, scale.width, 1)
        self.cells = cells(scale.width, scale.cells)

    def prior_parameters(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """mu_i(h_i) and log sigma_i(h_i), each (B, C_i, H_i, W_i)."""
        mu, log_sigma = at_least_float32(self.prior(F.silu(h))).chunk(2, dim=1)
        return mu, soft_bound(log_sigma, self.log_sigma_bound)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """block_i(h_i, z_i) before upsampling: (B, W, H, W)."""
        return self.cells(h + self.take_in(z))


class Refinement(nn.Module):
    """Cells at an image's own resolution, whose word is added to the image: nothing at first.

    A pixel shuffle alone draws the pixels of a block from one place, each by a kernel of its own:
    what is as fine as a pixel is then a lattice of blocks, or lone dots.

    Arguments:
        width: Of the stages before.
        stage: At `upsample` times their resolution.
        mode: How features are enlarged. If "bilinear" the image begins as the mean of each block,
            enlarged likewise: there is nothing of a lattice in either.
    """

    def __init__(
        self, width: int, stage: StageConfig, upsample: int, channels: int, mode: str = "nearest"
    ) -> None:
        super().__init__()
        self.upsample, self.mode = upsample, mode
        self.project = nn.Conv2d(width, stage.width, 1)
        self.take_in = nn.Conv2d(channels, stage.width, 3, padding=1)
        self.cells = cells(stage.width, stage.cells)
        self.head = narrow_start(nn.Conv2d(stage.width, channels, 3, padding=1), 0.0)

    def forward(self, features: Tensor, images: Tensor) -> Tensor:
        """(B, W, H, W) and (B, 3, S, S) to (B, 3, S, S)."""
        x = enlarged(self.project(features), self.upsample, self.mode)
        if self.mode == "bilinear":
            images = F.avg_pool2d(images, self.upsample)
            images = enlarged(images, self.upsample, self.mode)
        x = self.cells(x + self.take_in(images))
        return images + self.head(F.silu(x))


class ImageDecoder(nn.Module):
    """h_{L+1} to the mean image: upsampling stages, then one convolution and a pixel shuffle, and
    maybe a refinement.

    Arguments:
        mode: Of upsampling.
    """

    def __init__(
        self,
        width: int,
        stages: tuple[StageConfig, ...],
        head_upsample: int,
        channels: int,
        fine: StageConfig | None = None,
        mode: str = "nearest",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in stages:
            layers += [Upsample(width, stage.width, mode), cells(stage.width, stage.cells)]
            width = stage.width
        self.stages = nn.Sequential(*layers)
        self.head = narrow_start(nn.Conv2d(width, channels * head_upsample**2, 3, padding=1), 0.3)
        self.head_upsample = head_upsample
        self.fine = None
        if fine is not None:
            self.fine = Refinement(width, fine, head_upsample, channels, mode)

    def forward(self, features: Tensor) -> Tensor:
        """(B, W, H, W) to (B, 3, S, S), unbounded; about [-1, 1]."""
        features = F.silu(self.stages(features))
        images = F.pixel_shuffle(self.head(features), self.head_upsample)
        return images if self.fine is None else self.fine(features, images)


def sharp_decoder(config: GeneratorConfig) -> ImageDecoder:
    """An untrained image decoder with the stages of `config.sharp_decoder`."""
    stages, width = config.sharp_decoder, config.scales[-1].width
    assert stages is not None
    fine = None if len(stages) == len(config.decoder) else stages[-1]
    how = {"fine": fine, "mode": config.sharp_upsampling}
    stages = stages[: len(config.decoder)]
    return ImageDecoder(width, stages, config.head_upsample, config.image_channels, **how)


class HierarchicalGenerator(Generator):
    """The generator of one `GeneratorConfig`.

    `transform` is T, `inverse` its inverse on z, `decode` the image decoder's mean. `sharp`, if
    there is one, is a second image decoder that images are shown with.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        top = config.scales[0]
        self.constant = nn.Parameter(
            0.1 * torch.randn(1, top.width, top.resolution, top.resolution)
        )
        self.groups = nn.ModuleList(
            Group(s, config.log_sigma_bound) for s in config.scales for _ in range(s.groups)
        )
        self.upsamples = nn.ModuleList(
            Upsample(a.width, b.width)
            for a, b in zip(config.scales, config.scales[1:], strict=False)
        )
        ends = [
            sum(s.groups for s in config.scales[: i + 1]) - 1 for i in range(len(config.scales))
        ]
        self._upsample_after = {end: i for i, end in enumerate(ends[:-1])}
        self.decoder = ImageDecoder(
            config.scales[-1].width, config.decoder, config.head_upsample, config.image_channels
        )
        self.likelihood = DiscretizedLogistic(config.image_channels)
        self.sharp = None if config.sharp_decoder is None else sharp_decoder(config)

    def begin_with(self, start: Generator) -> bool:
        """Take over the weights of a generator of this config, but for its sharp decoder, which is
        made from what is trained; or grow from it (`grow_from`). Whether T stays as it is.
        """
        if self.config.keeps_latents_of(start.config):
            self.grow_from(start)
            return True
        known = start.state_dict().items()
        self.load_state_dict({k: v for k, v in known if not k.startswith("sharp.")})
        return False

    def grow_from(self, smaller: Generator) -> None:
        """Take over T and the shared stages of the image decoder of a generator that this one's
        config grows from, or of one of this config, and freeze T; the rest stays as initialised.
        """
        assert self.config.keeps_latents_of(smaller.config)
        # A sharp decoder is made from what is trained. Of another image, another head and scale.
        new = ("sharp.",)
        if self.config.grows_from(smaller.config):
            new += ("decoder.head.", "likelihood.")
        known = {k: v for k, v in smaller.state_dict().items() if not k.startswith(new)}
        self.load_state_dict(known, strict=False)
        self.requires_grad_(False)
        self.decoder.requires_grad_(True)
        self.likelihood.requires_grad_(True)

    def descend(self, batch: int, choose: Choose, *, features: bool = True) -> TopDown:
        """Walk the hierarchy, as `Generator.descend`."""
        h = self.constant.expand(batch, -1, -1, -1)
        zs, us, hs = [], [], []
        for i, group in enumerate(self.groups):
            assert isinstance(group, Group)
            u, z = choose(i, h, *group.prior_parameters(h))
            zs.append(z)
            us.append(u)
            hs.append(h)
            if i == len(self.groups) - 1 and not features:
                break
            h = self.through(group, h, z)
            if i in self._upsample_after:
                h = self.upsamples[self._upsample_after[i]](h)
        return TopDown(tuple(zs), tuple(us), tuple(hs), h)

    def output(self, features: Tensor) -> LogisticOutput:
        """p(x | h_{L+1}), a logistic distribution around the image decoder's mean."""
        return LogisticOutput(self.decoder(features), self.likelihood)

    @property
    def decoders(self) -> tuple[DecoderName, ...]:
        """As `Generator.decoders`."""
        return ("likelihood",) if self.sharp is None else ("sharp", "likelihood")

    def render(self, features: Tensor, decoder: DecoderName | None = None) -> Tensor:
        """The image of h_{L+1}, as `Generator.render`; by the sharp decoder where there is one."""
        chosen = self.chosen_decoder(decoder)
        if self.sharp is None or chosen == "likelihood":
            return self.decode(features)
        return self.sharp(features)
