"""Presets: what each of our models was trained with.

A preset names a generator, a prior and the settings of both runs. Command-line options override
single values.
"""

from dataclasses import dataclass, replace

from hebm_sample.config import (
    GeneratorConfig,
    LangevinConfig,
    PriorConfig,
    ScaleConfig,
    StageConfig,
    SymbolConfig,
)
from hebm_sample.errors import UserInputError
from hebm_sample.training.settings import TrainSettings

__all__ = ["PRESETS", "Preset", "find_preset"]


@dataclass(frozen=True)
class Preset:
    """A model to train.

    Arguments:
        name: The model's name in its `config.json`.
        note: One line for `--help` and the docs.
        kl_weight: beta of the generator's loss after the warm-up; 1 is the ELBO.
        chain_steps: K of the chains that objective "mle" trains with.
        label_columns: (symbol, column of the data) where the two have other names.
        symbol_weight: Of the labels' cross-entropy in the prior's loss.
        condition_share: Of the examples, those that score matching sees with labels set.
    """

    name: str
    note: str
    generator: GeneratorConfig
    prior: PriorConfig
    sampling: LangevinConfig
    generator_settings: TrainSettings
    prior_settings: TrainSettings
    kl_weight: float = 1.0
    chain_steps: int = 20
    label_columns: tuple[tuple[str, str], ...] = ()
    symbol_weight: float = 0.002
    condition_share: float = 0.5


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
FACE_ATTRIBUTES = (
    "Bangs",
    "Black_Hair",
    "Blond_Hair",
    "Eyeglasses",
    "Male",
    "No_Beard",
    "Smiling",
    "Wavy_Hair",
    "Wearing_Hat",
    "Young",
)
_FACE_SYMBOLS = tuple(SymbolConfig(name, ("no", "yes")) for name in FACE_ATTRIBUTES)

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

# With kl_weight 5 the posterior is wide: below 0.1 there is next to nothing to learn.
_FACES_PRIOR = PriorConfig(levels=LEVELS, width=88, cells=2, sigma_min=0.1)
_FACES_PRIOR_SETTINGS = TrainSettings(
    steps=4800, batch_size=32, learning_rate=7e-4, warmup_steps=100, sample_every=900.0
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

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="celebahq",
            note="64x64 faces, 6 groups on 4/8/16, for two CPU cores",
            generator=_FACES_64,
            # At 1 the 16x16 groups took 1,500 nats and N(0, I) samples had no global structure.
            kl_weight=5.0,
            prior=_FACES_PRIOR,
            sampling=LangevinConfig(),
            generator_settings=TrainSettings(steps=5200),
            prior_settings=_FACES_PRIOR_SETTINGS,
        ),
        Preset(
            name="celeba64",
            note="64x64 CelebA frames, 6 groups on 4/8/16, for two CPU cores",
            generator=_FACES_64,
            kl_weight=5.0,
            prior=replace(_FACES_PRIOR, symbols=_FACE_SYMBOLS),
            sampling=LangevinConfig(step_scale=1.0),
            generator_settings=TrainSettings(steps=5200),
            prior_settings=_FACES_PRIOR_SETTINGS,
        ),
        Preset(
            name="cifar10",
            note="32x32 objects in ten classes, 4 groups on 4/8, for two CPU cores",
            generator=_OBJECTS_32,
            kl_weight=5.0,
            prior=PriorConfig(
                levels=LEVELS,
                width=108,
                cells=2,
                sigma_min=0.1,
                symbols=(SymbolConfig("class", CIFAR10_CLASSES),),
            ),
            label_columns=(("class", "label"),),
            sampling=LangevinConfig(step_scale=1.0),
            # Held-out pictures are the data set's test file.
            generator_settings=TrainSettings(steps=10_000, validation=0),
            prior_settings=TrainSettings(
                steps=3800,
                batch_size=64,
                learning_rate=9e-4,
                warmup_steps=100,
                sample_every=900.0,
                validation=0,
            ),
        ),
        Preset(
            name="tiny",
            note="16x16 toy with 3 groups, seconds a run: for tests and first steps",
            generator=_TINY,
            prior=PriorConfig(levels=(0.1, 0.6, 0.96, 1.0), width=16, cells=1),
            sampling=LangevinConfig(steps=12),
            generator_settings=TrainSettings(
                steps=60, batch_size=8, warmup_steps=5, log_every=10, validation=8
            ),
            prior_settings=TrainSettings(
                steps=30,
                batch_size=8,
                learning_rate=1e-3,
                warmup_steps=5,
                log_every=10,
                validation=8,
            ),
        ),
    )
}


def find_preset(name: str) -> Preset:
    """The preset called `name`; `UserInputError` lists those that exist."""
    if name not in PRESETS:
        raise UserInputError(
            f"preset {name!r} does not exist; there are {', '.join(sorted(PRESETS))}"
        )
    return PRESETS[name]
