"""What a preset is: a model, and the settings of the runs that train it."""

from dataclasses import dataclass
from typing import Literal

from hebm_sample.config import GeneratorConfig, LangevinConfig, PriorConfig, SymbolConfig
from hebm_sample.presets.settings import TrainSettings

__all__ = ["FACE_ATTRIBUTES", "FACE_SYMBOLS", "Preset"]

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
class Preset:
    """A model to train.

    Arguments:
        name: What `--preset` takes.
        note: One line for `--help` and the docs.
        kl_weight: beta of the generator's loss, one number or one a scale or group, coarse to
            fine; 1 is the ELBO.
        objective: What the prior is trained with where no other is asked for.
        chain_steps: K of the chains that objective "mle" trains with.
        label_columns: (symbol, column of the data) where the two have other names.
        symbol_weight: Of the labels' cross-entropy in the prior's loss.
        condition_share: Of the examples, those that score matching sees with labels set.
        model: The model's name in its `config.json`, where it is not the preset's.
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

    @property
    def model_name(self) -> str:
        """The name in the model's `config.json`."""
        return self.model or self.name
