"""Presets at the paper's size, for GPUs: hierarchies of 15 to 30 groups, its objective and noise.

What is the paper's and its release's, for CIFAR-10 and CelebA-HQ-256: objective mle, T = 3 on the
release's levels with its parametrisation, K, s_0, the energies' width, the batch a GPU (of two),
Adam's 4e-5, betas (0.99, 0.999) and weight decay 3e-5. It freezes a published NVAE; the groups,
their 20 channels and the scales are those of the commands that NVAE (CIFAR-10) and VAEBM (the
others) publish for these data sets. For CelebA at 64x64 and LSUN churches the release has no
settings: theirs here are CelebA-HQ's with a larger batch.

What is ours: the networks. Cells, encoder, discretised logistic and energy nets are this package's
(`generator/`, `prior/network.py`), of NVAE's widths, not above 512; there are no normalising
flows, no batch normalisation, and none of the release's spectral-norm 4x4 stride-2 energies. The
learning rate follows a cosine, whose area here is that of the release's 0.9 (CIFAR-10) or 0.98 an
epoch:
1 / (1 - 0.9) = 10 epochs at the peak, so a cosine over 20. Steps count the GPUs named at each.
"""

from dataclasses import replace

from hebm_sample.config import (
    GeneratorConfig,
    LangevinConfig,
    PriorConfig,
    ScaleConfig,
    StageConfig,
)
from hebm_sample.presets.preset import DECODER_SETTINGS, FACE_SYMBOLS, Preset
from hebm_sample.presets.settings import TrainSettings

__all__ = ["PAPER_PRESETS"]

# cum_sigma of t = 0 ... T, T = 3: `prior.schedule.release_levels(3)` without its torch.
LEVELS = (0.009999999999999449, 0.6917925768476216, 0.9603141890209558, 0.99997982064757)
CHANNELS = 20  # of every group, as in NVAE and VAEBM


def _scale(resolution: int, groups: int, width: int) -> ScaleConfig:
    """NVAE's two residual cells per group."""
    return ScaleConfig(resolution, groups, latent_channels=CHANNELS, width=width, cells=2)


# NVAE's CIFAR-10: 30 groups at 16x16, width 256; two cells at 32x32 before and after them.
_OBJECTS = GeneratorConfig(
    image_size=32,
    scales=(_scale(16, 30, 256),),
    decoder=(StageConfig(resolution=32, width=128, cells=2),),
    head_upsample=1,
    encoder_cells=8,
)

# VAEBM's CelebA 64 and LSUN churches 64: five groups at each of 8, 16, 32.
_IMAGES_64 = GeneratorConfig(
    image_size=64,
    scales=(_scale(8, 5, 384), _scale(16, 5, 192), _scale(32, 5, 96)),
    decoder=(StageConfig(resolution=64, width=48, cells=2),),
    head_upsample=1,
    encoder_cells=4,
)

# VAEBM's CelebA-HQ: four groups at each of 8 ... 128. At 8x8 NVAE's width would be 1024.
_FACES_256 = GeneratorConfig(
    image_size=256,
    scales=(
        _scale(8, 4, 512),
        _scale(16, 4, 512),
        _scale(32, 4, 256),
        _scale(64, 4, 128),
        _scale(128, 4, 64),
    ),
    decoder=(StageConfig(resolution=256, width=32, cells=2),),
    head_upsample=1,
    encoder_cells=2,
)


def _prior(s_0: float, width: int, max_resolution: int) -> PriorConfig:
    """The release's noise levels and parametrisation, over energy nets of ours."""
    return PriorConfig(
        levels=LEVELS,
        width=width,
        cells=2,
        max_resolution=max_resolution,
        parametrization="release",
        step_size_0=s_0,
    )


def _sampling(chain_steps: int) -> LangevinConfig:
    """The chains that the energies were trained with: K plain steps per level, from u_{t+1}."""
    return LangevinConfig(
        sampler="recovery",
        steps=(len(LEVELS) - 1) * chain_steps,
        kernel="plain",
        start="u_next",
        step_scale=1.0,
        denoise=False,
    )


_GENERATOR = TrainSettings(
    learning_rate=1e-3,
    warmup_steps=2000,
    ema_decay=0.9999,
    log_every=100,
    checkpoint_every=1800.0,
    sample_every=3600.0,
)
_PRIOR = replace(
    _GENERATOR, learning_rate=4e-5, betas=(0.99, 0.999), weight_decay=3e-5, ema_decay=0.999
)

_CELEBA64 = Preset(
    name="celeba64-paper",
    note="64x64 CelebA, 15 groups on 8/16/32, mle: for GPUs",
    generator=_IMAGES_64,
    prior=replace(_prior(2e-5, 64, 16), symbols=FACE_SYMBOLS),
    objective="mle",
    chain_steps=30,
    sampling=_sampling(30),
    # 8 GPUs, 50 epochs of 162,770 images; the rest is validation and test.
    generator_settings=replace(_GENERATOR, steps=31_800, batch_size=32, validation=39_829),
    # 2 GPUs, 100 epochs.
    prior_settings=replace(_PRIOR, steps=508_600, batch_size=16, validation=39_829),
    decoder_settings=replace(DECODER_SETTINGS, validation=39_829),
    faces=True,
)

PAPER_PRESETS: tuple[Preset, ...] = (
    Preset(
        name="cifar10-paper",
        note="32x32 objects, the paper's 30 groups at 16x16, mle: for GPUs",
        generator=_OBJECTS,
        prior=_prior(3e-5, 128, 8),
        objective="mle",
        chain_steps=50,
        sampling=_sampling(50),
        # 8 GPUs, 400 epochs of 50,000 images; held-out images are the data set's test file.
        generator_settings=replace(_GENERATOR, steps=78_000, batch_size=32, validation=0),
        # 2 GPUs, 20 epochs.
        prior_settings=replace(_PRIOR, steps=20_000, batch_size=25, validation=0),
        decoder_settings=replace(DECODER_SETTINGS, validation=0),
    ),
    Preset(
        name="celebahq-paper",
        note="256x256 faces, 20 groups on 8/16/32/64/128, mle: for GPUs",
        generator=_FACES_256,
        prior=_prior(2e-5, 64, 16),
        objective="mle",
        chain_steps=30,
        sampling=_sampling(30),
        # 8 GPUs, 200 epochs of 27,000 images.
        generator_settings=replace(_GENERATOR, steps=84_300, batch_size=8, validation=3000),
        # 2 GPUs, 100 epochs.
        prior_settings=replace(_PRIOR, steps=675_000, batch_size=2, validation=3000),
        decoder_settings=replace(DECODER_SETTINGS, validation=3000),
        faces=True,
    ),
    _CELEBA64,
    replace(
        _CELEBA64,
        name="lsun-church",
        note="64x64 LSUN churches, 15 groups on 8/16/32, mle: for GPUs",
        prior=_prior(2e-5, 64, 16),
        # 8 GPUs, 60 epochs of 122,227 images of 126,227.
        generator_settings=replace(_GENERATOR, steps=28_600, batch_size=32, validation=4000),
        # 2 GPUs, 100 epochs.
        prior_settings=replace(_PRIOR, steps=381_900, batch_size=16, validation=4000),
        decoder_settings=replace(DECODER_SETTINGS, validation=4000),
        faces=False,
    ),
)
