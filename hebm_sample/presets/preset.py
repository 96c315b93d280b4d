"""What a preset is: a model, and the settings of the runs that train it."""

from dataclasses import dataclass
from typing import Any, Literal

from hebm_sample.config import (
    ConfigBase,
    GeneratorConfig,
    LangevinConfig,
    PriorConfig,
    StageConfig,
    SymbolConfig,
    Upsampling,
    require_choice,
    require_integer,
    require_range,
)
from hebm_sample.presets.settings import TrainSettings

__all__ = ["DECODER_SETTINGS", "FACE_ATTRIBUTES", "FACE_SYMBOLS", "DecoderPlan", "Preset"]

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
FACE_SYMBOLS = tuple(SymbolConfig(name, ("no", "yes")) for name in FACE_ATTRIBUTES)


@dataclass(frozen=True)
class DecoderPlan(ConfigBase):
    """How the sharp image decoder is made and trained (`training/decoding/objective.py`).

    Arguments:
        stages: Of the decoder; those of the generator's own if None, whose weights it starts from
            in either case, where they fit.
        upsampling: Of the decoder: "nearest" or "bilinear".
        square: Positions of h_{L+1} on a side that a step sees, at a random place; None for all.
        samples: Latents of the energy-based prior that half of the decoded images are made of;
            0, or a model without a prior, trains on reconstructions alone.
        pixels, squares, features, adversarial: Weights of the decoder's losses: of |y - x|,
            (y - x)^2, and those of the discriminator, whose logit is divided by its slope; so
            at `adversarial` = 3 `pixels` its gradient at a decoded image is about as large as that
            of |y - x|, however steep it has become. What a discriminator misses most is energy of
            high frequencies, which costs |y - x|, but not its square, least in lone dots.
        blur: Standard deviation, in pixels, of the Gaussian through which images are compared
            pixel by pixel; 0 compares them as they are. What is finer than the encoder reads
            cannot be known from latents: held to it, a decoder draws its mean, which is smooth.
        penalty: Of R1 and R2 in the discriminator's loss: a third of the 2e-4 S^2 / B that is
            usual for a batch of B and S pixels on a side that it sees (Karras et al., "Training
            Generative Adversarial Networks with Limited Data", arXiv 2006.06676). What may be no
            steeper is blind to lone dots.
        discriminator_rate: The discriminator's learning rate, which stays, over the decoder's
            highest. Where it is slow, the decoder finds lattices that it does not see.
        shift: Most pixels that what the discriminator sees is moved by, at random.
    """

    stages: tuple[StageConfig, ...] | None = None
    upsampling: Upsampling = "nearest"
    square: int | None = None
    samples: int = 4000
    pixels: float = 2.0
    squares: float = 10.0
    features: float = 0.25
    adversarial: float = 8.0
    penalty: float = 0.01
    discriminator_rate: float = 2.0
    shift: int = 4
    blur: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what was added later only where it says something: so runs that were
        begun before are gone on with.
        """
        later = {"upsampling": "nearest", "blur": 0.0}
        return {k: v for k, v in super().to_dict().items() if k not in later or v != later[k]}

    def __post_init__(self) -> None:
        if self.square is not None:
            require_integer("square", self.square, 1, 1024)
        require_integer("samples", self.samples, 0, 10**6)
        require_integer("shift", self.shift, 0, 1024)
        require_choice("upsampling", self.upsampling, Upsampling)
        require_range("blur", self.blur, 0.0, 64.0)
        for name in (
            "pixels",
            "squares",
            "features",
            "adversarial",
            "penalty",
            "discriminator_rate",
        ):
            require_range(name, getattr(self, name), 0.0, 1e6)


# Half of Adam's usual momentum: without any, a discriminator began half as fast.
DECODER_SETTINGS = TrainSettings(
    steps=6250,
    batch_size=32,
    learning_rate=3e-4,
    betas=(0.5, 0.99),
    warmup_steps=50,
    weight_decay=0.0,
    ema_length=0.1,
    gradient_clip=10.0,
    evaluate_every=250,
)


@dataclass(frozen=True)
class Preset:
    """A model to train.

    Arguments:
        name: What `--preset` takes.
        note: One line for `--help` and the docs.
        kl_weight: beta of the generator's loss, one number or one per scale or group, coarse to
            fine; 1 is the ELBO.
        objective: What the prior is trained with where no other is asked for.
        chain_steps: K of the chains that objective "mle" trains with.
        label_columns: (symbol, column of the data) where the two have other names.
        symbol_weight: Of the labels' cross-entropy in the prior's loss.
        condition_share: Of the examples, those that score matching sees with labels set.
        model: The model's name in its `config.json`, where it is not the preset's.
        decoder: The sharp image decoder.
        decoder_settings: Of the run that trains it.
        held_out_split: Split of the data that figures are measured on, where it is not the rows
            that training holds out for its log.
        grown_from: The preset of smaller images whose model the generator grows from.
        faces: Whether its images are cropped faces: a recipe then measures where the data have
            eyes and mouths.
    """

    name: str
    note: str
    generator: GeneratorConfig
    prior: PriorConfig
    sampling: LangevinConfig
    generator_settings: TrainSettings
    prior_settings: TrainSettings
    kl_weight: float | tuple[float, ...] = 1.0
    objective: Literal["score", "mle"] = "score"
    chain_steps: int = 20
    label_columns: tuple[tuple[str, str], ...] = ()
    symbol_weight: float = 0.002
    condition_share: float = 0.5
    model: str = ""
    decoder: DecoderPlan = DecoderPlan()
    decoder_settings: TrainSettings = DECODER_SETTINGS
    held_out_split: str = ""
    grown_from: str = ""
    faces: bool = False

    @property
    def model_name(self) -> str:
        """The name in the model's `config.json`."""
        return self.model or self.name
