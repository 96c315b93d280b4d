"""From a description to the networks of its kind: the one place that knows all kinds."""

from hebm_sample.config import GeneratorConfig, NvaeConfig
from hebm_sample.generator.encoder import Encoder
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.generator.nvae.encoder import NvaeEncoder
from hebm_sample.generator.nvae.hierarchy import NvaeGenerator
from hebm_sample.generator.protocol import Generator, ImageEncoder

__all__ = ["AnyGeneratorConfig", "new_encoder", "new_generator"]

AnyGeneratorConfig = GeneratorConfig | NvaeConfig


def new_generator(config: AnyGeneratorConfig) -> Generator:
    """An untrained generator."""
    if isinstance(config, NvaeConfig):
        return NvaeGenerator(config)
    return HierarchicalGenerator(config)


def new_encoder(config: AnyGeneratorConfig) -> ImageEncoder:
    """An untrained encoder of such a generator."""
    return NvaeEncoder(config) if isinstance(config, NvaeConfig) else Encoder(config)
