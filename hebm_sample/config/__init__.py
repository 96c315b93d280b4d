"""A model's description: frozen dataclasses that round-trip through `config.json`.

Everything a sampler needs to rebuild a model is here and is checked when it is built: shapes,
noise levels as explicit numbers, the parametrisation of the energies, the sampler's defaults.
Unknown keys are errors.
"""

from hebm_sample.config.base import (
    FORMAT_VERSION,
    ConfigBase,
    plain,
    require,
    require_choice,
    require_integer,
    require_range,
)
from hebm_sample.config.crop import FaceCrop
from hebm_sample.config.generator import (
    DecoderName,
    GeneratorConfig,
    ScaleConfig,
    StageConfig,
    Upsampling,
)
from hebm_sample.config.model import ModelConfig
from hebm_sample.config.nvae import CellKind, NvaeCells, NvaeConfig
from hebm_sample.config.prior import Parametrization, PriorConfig, SymbolConfig
from hebm_sample.config.record import TrainingRecord
from hebm_sample.config.sampler import (
    CHAINLESS,
    EDIT_GUIDANCE,
    EDIT_STEPS,
    MAX_GUIDANCE,
    Kernel,
    LangevinConfig,
    ReferenceVariance,
    SamplerName,
    Start,
)

__all__ = [
    "CHAINLESS",
    "EDIT_GUIDANCE",
    "EDIT_STEPS",
    "FORMAT_VERSION",
    "MAX_GUIDANCE",
    "CellKind",
    "ConfigBase",
    "DecoderName",
    "FaceCrop",
    "GeneratorConfig",
    "Kernel",
    "LangevinConfig",
    "ModelConfig",
    "NvaeCells",
    "NvaeConfig",
    "Parametrization",
    "PriorConfig",
    "ReferenceVariance",
    "SamplerName",
    "ScaleConfig",
    "StageConfig",
    "Start",
    "SymbolConfig",
    "TrainingRecord",
    "Upsampling",
    "require",
    "require_choice",
    "plain",
    "require_integer",
    "require_range",
]
