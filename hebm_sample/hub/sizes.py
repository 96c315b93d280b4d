"""How many bytes the weights of a description take at least, known before any network is made.

    a layer:  2 bytes a number (half precision), and 100 for its two entries in the file's header

A description of a few hundred bytes can ask for terabytes. Files that could not hold its weights
are refused first, so that what a model takes is in proportion to what was downloaded.
"""

from pathlib import Path

import torch

from hebm_sample.config import GeneratorConfig, ModelConfig, NvaeConfig, ScaleConfig, StageConfig
from hebm_sample.errors import WeightsError
from hebm_sample.generator.kinds import new_encoder, new_generator
from hebm_sample.prior.release_network import ReleaseNet

__all__ = ["check_room", "least_bytes"]

LEVEL_FEATURES = 64  # sinusoids of the noise level


def _layer(inputs: int, outputs: int, side: int = 1) -> int:
    """A convolution with `side` x `side` kernels, or a linear layer."""
    return 2 * outputs * (inputs * side**2 + 1) + 100


def _cells(width: int, count: int) -> int:
    inner = max(width // 2, 1)
    ends = _layer(width, inner) + _layer(inner, width)
    return count * (ends + 2 * _layer(inner, inner, 3))


def _group(scale: ScaleConfig) -> int:
    channels, width = scale.latent_channels, scale.width
    ends = _layer(width, 2 * channels) + _layer(channels, width)
    return ends + _cells(width, scale.cells)


def _generator(config: GeneratorConfig) -> int:
    scales = config.scales
    total = 2 * scales[0].width * scales[0].resolution ** 2
    total += sum(scale.groups * _group(scale) for scale in scales)
    total += sum(_layer(a.width, b.width) for a, b in zip(scales, scales[1:], strict=False))
    decoders = (config.decoder, config.sharp_decoder)
    return total + sum(_decoder(config, stages) for stages in decoders if stages is not None)


def _decoder(config: GeneratorConfig, decoder: tuple[StageConfig, ...]) -> int:
    stages = (config.scales[-1], *decoder[: len(config.decoder)])
    total = sum(_layer(a.width, b.width) for a, b in zip(stages, stages[1:], strict=False))
    total += sum(_cells(stage.width, stage.cells) for stage in decoder)
    width, channels = stages[-1].width, config.image_channels
    for fine in decoder[len(config.decoder) :]:
        total += _layer(width, fine.width) + _layer(channels, fine.width, 3)
        total += _layer(fine.width, channels, 3)
    return total + _layer(width, channels * config.head_upsample**2, 3)


def _encoder(config: GeneratorConfig) -> int:
    stages = [*reversed(config.encoder_stages), *reversed(config.scales)]
    total = _layer(config.image_channels * config.head_upsample**2, stages[0].width, 3)
    total += sum(_layer(4 * a.width, b.width) for a, b in zip(stages, stages[1:], strict=False))
    total += sum(_cells(stage.width, config.encoder_cells) for stage in stages)
    for scale in config.scales:
        head = _layer(2 * scale.width, scale.width) + _cells(scale.width, 1)
        total += scale.groups * (head + _layer(scale.width, 2 * scale.latent_channels))
    return total


def _prior(config: ModelConfig) -> int:
    prior, total = config.prior, 0
    assert prior is not None
    if prior.network != "energy_net":
        residual = prior.network == "release_residual"
        with torch.device("meta"):
            nets = [ReleaseNet(s, prior.width, residual) for s in config.generator.latent_shapes]
        return sum(2 * p.numel() for net in nets for p in net.parameters())
    width, values = prior.width, sum(len(symbol.values) for symbol in prior.symbols)
    cell = 2 * _layer(width, width, 3) + _layer(width, 2 * width)
    for scale in config.generator.scales:
        folded = max(1, scale.resolution // prior.max_resolution) ** 2
        latents = scale.latent_channels * folded
        net = _layer(LEVEL_FEATURES, width) + _layer(scale.width * folded, width)
        net += _layer(2 * latents, width, 3) + prior.cells * cell + 2 * _layer(width, latents)
        if values:
            net += _layer(width, values * latents) + _layer(width, values)
        total += scale.groups * net
    return total


def _outlined(config: NvaeConfig, *, encoder: bool) -> int:
    """Of networks whose layers are bounded in number: made without memory for their weights."""
    with torch.device("meta"):
        module = new_encoder(config) if encoder else new_generator(config)
    return sum(2 * p.numel() for p in module.parameters())


def least_bytes(config: ModelConfig, filename: str) -> int:
    """Fewer bytes than this cannot be the model's generator, prior or encoder file."""
    if filename == "prior.safetensors":
        return _prior(config)
    if isinstance(config.generator, NvaeConfig):
        return _outlined(config.generator, encoder=filename == "encoder.safetensors")
    return (_encoder if filename == "encoder.safetensors" else _generator)(config.generator)


def check_room(config: ModelConfig, path: Path, size: int) -> None:
    """Raise `WeightsError` if a file of `size` bytes cannot hold what the description asks for."""
    least = least_bytes(config, path.name)
    if size < least:
        raise WeightsError(
            f"{path} does not fit its config.json: it has {size} bytes, and these weights take "
            f"{least} at least; get both files from one place again"
        )
