"""Presets: what each of our models was trained with.

A preset names a generator, a prior and the settings of both runs. Command-line options override
single values.
"""

from dataclasses import replace

from hebm_sample.config import (
    GeneratorConfig,
    LangevinConfig,
    PriorConfig,
    ScaleConfig,
    StageConfig,
    SymbolConfig,
)
from hebm_sample.errors import UserInputError
from hebm_sample.presets.paper import PAPER_PRESETS
from hebm_sample.presets.preset import DECODER_SETTINGS, FACE_SYMBOLS, DecoderPlan, Preset
from hebm_sample.presets.settings import TrainSettings

__all__ = ["PRESETS", "Preset", "find_preset"]


# Lowest to highest noise; the last is pure noise, from which every chain starts.
LEVELS = (0.2, 0.4, 0.6, 0.77, 0.89, 0.96, 1.0)

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

# Of the faces' 64x64 images.
_FACES_64 = GeneratorConfig(
    image_size=64,
    scales=(
        ScaleConfig(resolution=4, groups=2, latent_channels=16, width=160, cells=2),
        ScaleConfig(resolution=8, groups=2, latent_channels=4, width=128, cells=2),
        ScaleConfig(resolution=16, groups=2, latent_channels=2, width=96, cells=2),
    ),
    decoder=(StageConfig(resolution=32, width=64, cells=3),),
    head_upsample=2,
    encoder_cells=2,
)

# The 64x64 generator with two more stages: the same latents, encoder, T and energies.
_FACES_256 = replace(
    _FACES_64,
    image_size=256,
    decoder=(
        *_FACES_64.decoder,
        StageConfig(resolution=64, width=64, cells=2),
        StageConfig(resolution=128, width=32, cells=1),
    ),
    encoder_size=64,
)

# With kl_weight 5 the posterior is wide: below 0.1 there is next to nothing to learn.
_FACES_PRIOR = PriorConfig(levels=LEVELS, width=88, cells=2, sigma_min=0.1)
_FACES_PRIOR_SETTINGS = TrainSettings(
    steps=4800,
    batch_size=32,
    learning_rate=7e-4,
    warmup_steps=100,
    sample_every=900.0,
    evaluate_every=400,
)

# Of priors that are trained to their end: 1.5 million images, best weights by held-out gain.
_LONG_PRIOR_SETTINGS = TrainSettings(
    steps=23_500,
    batch_size=64,
    learning_rate=8e-4,
    warmup_steps=200,
    sample_every=900.0,
    evaluate_every=500,
    ema_length=0.1,
)

# Of generators likewise: 0.8 million images.
_LONG_GENERATOR_SETTINGS = TrainSettings(
    steps=12_500, batch_size=64, evaluate_every=500, ema_length=0.1
)

# 250 nats in all: what finer details cost a prior more than they show, an image decoder makes up.
_FACES_KL_WEIGHT = (8.0, 14.0, 24.0)
# Published figures are of these rows: the last of the faces' data.
_HELD_OUT_FACES = 4000
_FACES_GENERATOR_SETTINGS = replace(_LONG_GENERATOR_SETTINGS, validation=_HELD_OUT_FACES)


def _published(preset: Preset) -> Preset:
    """The preset with the held-out rows that its figures are of."""
    return replace(
        preset,
        generator_settings=replace(preset.generator_settings, validation=_HELD_OUT_FACES),
        prior_settings=replace(preset.prior_settings, validation=_HELD_OUT_FACES),
        decoder_settings=replace(preset.decoder_settings, validation=_HELD_OUT_FACES),
    )


# Sharp decoders: more cells than the likelihood's, which cost little beside a chain, and some at
# the image's own resolution.
_FINE_64 = StageConfig(resolution=64, width=48, cells=2)
_SHARP_64 = DecoderPlan(stages=(StageConfig(resolution=32, width=64, cells=6), _FINE_64))
# Wider, for models whose images end at this size: cells work at half of their width.
_WIDE_64 = DecoderPlan(stages=(StageConfig(resolution=32, width=96, cells=6), _FINE_64))
_SHARP_32 = DecoderPlan(
    stages=(
        StageConfig(resolution=16, width=128, cells=6),
        StageConfig(resolution=32, width=64, cells=2),
    ),
    penalty=0.0025,
    shift=2,
)
_SHARP_256 = DecoderPlan(
    stages=(
        StageConfig(resolution=32, width=96, cells=6),
        StageConfig(resolution=64, width=96, cells=4),
        StageConfig(resolution=128, width=32, cells=2),
        StageConfig(resolution=256, width=24, cells=2),
    ),
    upsampling="bilinear",
    square=8,  # 128 pixels
    penalty=0.07,
    shift=8,
    blur=2.0,  # the encoder reads means of 4x4 pixels
)

# 60,000 squares, each four times the pixels of a 64x64 image.
_SHARP_256_SETTINGS = replace(DECODER_SETTINGS, steps=3750, batch_size=16)

# Of the image decoder alone, from a trained model of 64x64 images.
_GROWING_SETTINGS = TrainSettings(steps=2000, batch_size=16, learning_rate=2e-3)

_FEW_IMAGES = {"weight_decay": 0.02, "zoom": 0.75, "validation": 500}

# 2,500 images to train on: narrower nets, random squares of the images, more weight decay.
_CHURCHES_64 = GeneratorConfig(
    image_size=64,
    scales=(
        ScaleConfig(resolution=4, groups=2, latent_channels=16, width=128, cells=2),
        ScaleConfig(resolution=8, groups=2, latent_channels=4, width=96, cells=2),
        ScaleConfig(resolution=16, groups=2, latent_channels=2, width=72, cells=2),
    ),
    decoder=(StageConfig(resolution=32, width=56, cells=3),),
    head_upsample=2,
    encoder_cells=1,
)

_OBJECTS_32 = GeneratorConfig(
    image_size=32,
    scales=(
        ScaleConfig(resolution=4, groups=2, latent_channels=16, width=128, cells=2),
        ScaleConfig(resolution=8, groups=2, latent_channels=8, width=144, cells=2),
    ),
    decoder=(StageConfig(resolution=16, width=80, cells=3),),
    head_upsample=2,
    encoder_cells=1,
)

_TINY = GeneratorConfig(
    image_size=16,
    scales=(
        ScaleConfig(resolution=2, groups=1, latent_channels=4, width=16),
        ScaleConfig(resolution=4, groups=2, latent_channels=2, width=16),
    ),
    decoder=(StageConfig(resolution=8, width=8, cells=1),),
    head_upsample=2,
    encoder_cells=1,
)

# What all presets of 64x64 faces start from; those of the models add symbols and a name.
_IMAGES_64 = Preset(
    name="images64",
    note="64x64 images of your own, no symbols; 6 groups on 4/8/16, for two CPU cores",
    generator=_FACES_64,
    # At 1 the 16x16 groups took 1,500 nats and N(0, I) samples had no global structure.
    kl_weight=5.0,
    prior=_FACES_PRIOR,
    sampling=LangevinConfig(step_scale=1.0),
    generator_settings=TrainSettings(steps=5200, evaluate_every=400),
    prior_settings=_FACES_PRIOR_SETTINGS,
    decoder=_SHARP_64,
)
_IMAGES_256 = replace(
    _IMAGES_64,
    name="images256",
    note="256x256 images of your own, grown from a model of images64",
    grown_from="images64",
    generator=_FACES_256,
    generator_settings=_GROWING_SETTINGS,
    decoder=_SHARP_256,
    decoder_settings=_SHARP_256_SETTINGS,
)
# The fastest that is as good as chains of 50 steps per level (docs/performance.md); of four
# particles a few more faces are whole than of one, by eye (docs/lab-notes.md).
_FACES_SAMPLING = LangevinConfig(
    steps=16, start="ancestral", step_scale=1.0, momentum=0.8, particles=4
)
_WITH_SYMBOLS = replace(_FACES_PRIOR, width=128, symbols=FACE_SYMBOLS)
# What both data sets of 64x64 faces have.
_FACES_PRESET = _published(
    replace(
        _IMAGES_64,
        kl_weight=_FACES_KL_WEIGHT,
        generator_settings=_FACES_GENERATOR_SETTINGS,
        prior=_WITH_SYMBOLS,
        prior_settings=_LONG_PRIOR_SETTINGS,
        sampling=_FACES_SAMPLING,
        faces=True,
    )
)
_TINY_PRESET = Preset(
    name="tiny",
    note="16x16 toy with 3 groups, seconds per run: for tests and first steps",
    generator=_TINY,
    prior=PriorConfig(levels=(0.1, 0.6, 0.96, 1.0), width=16, cells=1),
    sampling=LangevinConfig(steps=12),
    generator_settings=TrainSettings(steps=60, batch_size=8, warmup_steps=5, log_every=10),
    prior_settings=TrainSettings(
        steps=30,
        batch_size=8,
        learning_rate=1e-3,
        warmup_steps=5,
        log_every=10,
    ),
    decoder=DecoderPlan(samples=16),
    decoder_settings=replace(
        DECODER_SETTINGS,
        steps=30,
        batch_size=8,
        warmup_steps=5,
        log_every=10,
        evaluate_every=10,
    ),
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        replace(
            _published(_IMAGES_256),
            name="celebahq",
            note="256x256 faces, grown from a model of celebahq-64",
            grown_from="celebahq-64",
            prior=_WITH_SYMBOLS,
            sampling=_FACES_SAMPLING,
            faces=True,
        ),
        replace(
            _FACES_PRESET,
            name="celebahq-64",
            model="celebahq",
            note="64x64 faces with ten attributes; the generator of images64, at a lower rate",
        ),
        replace(
            _FACES_PRESET,
            name="celeba64",
            note="64x64 CelebA frames with ten attributes; the generator of images64",
            decoder=_WIDE_64,
        ),
        Preset(
            name="cifar10",
            note="32x32 objects in ten classes, 4 groups on 4/8, for two CPU cores",
            generator=_OBJECTS_32,
            kl_weight=5.0,
            prior=PriorConfig(
                levels=LEVELS,
                width=128,
                cells=2,
                sigma_min=0.1,
                symbols=(SymbolConfig("class", CIFAR10_CLASSES),),
            ),
            label_columns=(("class", "label"),),
            sampling=LangevinConfig(step_scale=1.0),
            # Of the training file; figures are of the data set's test file.
            held_out_split="test",
            generator_settings=replace(_LONG_GENERATOR_SETTINGS, validation=1000),
            prior_settings=replace(_LONG_PRIOR_SETTINGS, validation=1000),
            decoder=_SHARP_32,
            decoder_settings=replace(DECODER_SETTINGS, validation=1000),
        ),
        _IMAGES_64,
        _IMAGES_256,
        Preset(
            name="church64",
            note="64x64 churches from 2,500 images, 6 groups on 4/8/16, for two CPU cores",
            generator=_CHURCHES_64,
            kl_weight=_FACES_KL_WEIGHT,
            prior=PriorConfig(levels=LEVELS, width=88, cells=2, sigma_min=0.1),
            sampling=LangevinConfig(step_scale=1.0),
            # The best weights by what is held out, until that turns: so few images are learned by
            # heart early.
            generator_settings=replace(
                _LONG_GENERATOR_SETTINGS, steps=6000, patience=1500, **_FEW_IMAGES
            ),
            prior_settings=replace(
                _LONG_PRIOR_SETTINGS, steps=12_000, patience=2000, **_FEW_IMAGES
            ),
            decoder_settings=replace(DECODER_SETTINGS, zoom=0.75, validation=500),
            decoder=_WIDE_64,
        ),
        _TINY_PRESET,
        replace(
            _TINY_PRESET,
            name="tiny-energies",
            note="small energies on any generator, an imported NVAE too, seconds per run",
            prior_settings=replace(_TINY_PRESET.prior_settings, steps=20),
        ),
        *PAPER_PRESETS,
    )
}


def find_preset(name: str) -> Preset:
    """The preset called `name`; `UserInputError` lists those that exist."""
    if name not in PRESETS:
        raise UserInputError(
            f"preset {name!r} does not exist; there are {', '.join(sorted(PRESETS))}"
        )
    return PRESETS[name]
