"""A tiny model with random weights: the preset `tiny`, 16x16 images, 3 groups on 2 scales.

The energies' heads start at zero, where nothing that reads them could be seen to be wrong, so they
are given small values; so are the mus and sigmas of generator and encoder, which start near 0
and 1. `symbolic_pipeline` is the same with two symbols, whose heads get values too.
"""

from dataclasses import replace

import torch
from torch import nn

from hebm_sample.config import ModelConfig, SymbolConfig
from hebm_sample.generator.encoder import Encoder
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.hub.load import new_prior
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.models import find_preset

SYMBOLS = (SymbolConfig("class", ("a", "b", "c")), SymbolConfig("Smiling", ("no", "yes")))


def tiny_config(**sampling) -> ModelConfig:
    preset = find_preset("tiny")
    defaults = replace(preset.sampling, **sampling)
    return ModelConfig("tiny", preset.generator, preset.prior, defaults)


def symbolic_config(**sampling) -> ModelConfig:
    """The tiny model with the variables `class` (a, b, c) and `Smiling` (no, yes)."""
    config = tiny_config(**sampling)
    assert config.prior is not None
    return replace(config, prior=replace(config.prior, symbols=SYMBOLS))


def release_config() -> ModelConfig:
    """The same model with the release's parametrisation and the only sampler it has."""
    config = tiny_config(start="u_next", denoise=False, kernel="plain", step_scale=1.0)
    assert config.prior is not None
    return replace(config, prior=replace(config.prior, parametrization="release"))


def tiny_modules(config: ModelConfig | None = None, seed: int = 0, energy: float = 0.05):
    """Generator, encoder and prior; the same for the same seed; global streams are let be."""
    config = config or tiny_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator, encoder = HierarchicalGenerator(config.generator), Encoder(config.generator)
        for group in generator.groups:
            nn.init.normal_(group.prior.weight, std=0.1)
            nn.init.normal_(group.prior.bias, std=0.1)
        nn.init.normal_(generator.decoder.head.weight, std=0.15)
        for head in encoder.heads:
            nn.init.normal_(head.out.weight, std=0.3)
        prior = new_prior(config)
        for net in prior.nets:
            for head in (net.out, net.gain, net.pooled):
                nn.init.normal_(head.weight, std=energy)
            if net.symbol_values:
                nn.init.normal_(net.symbol_out.weight, std=energy)
                nn.init.normal_(net.symbol_pooled.weight, std=6 * energy)
    return generator, encoder, prior


def tiny_pipeline(config: ModelConfig | None = None, **options) -> Pipeline:
    config = config or tiny_config()
    generator, encoder, prior = tiny_modules(config)
    return Pipeline(config, generator, prior, encoder, **options)


def symbolic_pipeline(**sampling) -> Pipeline:
    """`tiny_pipeline` of `symbolic_config`; with other sampler defaults if given."""
    return tiny_pipeline(symbolic_config(**sampling))


def tiny_latents(config: ModelConfig, batch: int = 2, seed: int = 0, dtype=torch.float32):
    stream = torch.Generator().manual_seed(seed)
    shapes = config.generator.latent_shapes
    return tuple(torch.randn(batch, *s, generator=stream).to(dtype) for s in shapes)


def tiny_images(config: ModelConfig, batch: int = 2, seed: int = 0):
    """On the 256 levels, in [-1, 1]."""
    stream = torch.Generator().manual_seed(seed)
    size = config.generator.image_size
    levels = torch.randint(0, 256, (batch, 3, size, size), generator=stream)
    return levels.float() * 2 / 255 - 1
