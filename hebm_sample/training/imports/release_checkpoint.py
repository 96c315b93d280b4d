"""The energies of the authors' release (arXiv 2405.13910), read for an imported NVAE.

The file is a `torch.save` of a dictionary with `netE0`, `netE1`, ... (the state dictionary of each
group's net, top to bottom) and `opt0`, ... (only training needs them). It says nothing of levels
and steps, so they are the release's: T = 3, s_0 = 3e-5, K = 50 for the residual nets (CIFAR-10),
2e-5 and 30 for the plain ones (CelebA-HQ). Layers with spectral norm have `weight_orig`,
`weight_u` and `weight_v`; their weight is weight_orig / (u^T W v).
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hebm_sample.config import LangevinConfig, NvaeConfig, PriorConfig
from hebm_sample.errors import UserInputError
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.files import short
from hebm_sample.prior.joint import JointEnergy
from hebm_sample.prior.release_network import DenseBlock, HalvingBlock, ReleaseNet
from hebm_sample.prior.schedule import release_levels
from hebm_sample.training.imports.nvae_weights import Source, check_room
from hebm_sample.training.imports.pickles import unpickle

__all__ = ["load_energies"]

LEVELS = 3
STEPS = {True: (3e-5, 50), False: (2e-5, 30)}  # s_0 and K of residual and plain nets


def _layer(source: Source, key: str, layer: nn.Module) -> None:
    """A layer without bias, with spectral norm or without."""
    conv = cast("nn.Conv2d", layer)
    shape = tuple(conv.weight.shape)
    if f"{key}.weight" in source.tensors:
        weight = source.take(f"{key}.weight", shape)
    else:
        weight = source.take(f"{key}.weight_orig", shape)
        matrix = weight.flatten(1)
        left = source.take(f"{key}.weight_u", (matrix.shape[0],))
        right = source.take(f"{key}.weight_v", (matrix.shape[1],))
        sigma = left @ matrix @ right
        weight = weight / (sigma if bool(sigma != 0) else 1.0)
    conv.weight.data = weight.to(conv.weight.dtype)


def _halving(source: Source, block: HalvingBlock, number: int) -> None:
    prefix = f"res_blocks.{number - 1}." if number else ""
    names = ("conv2d_1.1", "conv2d_2.1", "conv2d_shortcut.1", "linear.1")
    first = ("conv_start", "conv_all.1", "conv_short", "t_linear.1")
    layers = (block.conv1, block.conv2, block.short, block.level)
    for name, layer in zip(names if number else first, layers, strict=True):
        _layer(source, prefix + name, layer)


def _fill(source: Source, net: ReleaseNet) -> None:
    embedding = "t_ebm_model2" if net.residual else "t_ebm_model1"
    _layer(source, f"{embedding}.0", net.embed1)
    _layer(source, f"{embedding}.2", net.embed2)
    if net.residual:
        _layer(source, "t_ebm_model1.0", net.offset1)
        _layer(source, "t_ebm_model1.2", net.offset2)
    for i, block in enumerate(net.blocks):
        if isinstance(block, HalvingBlock):
            _halving(source, block, i)
        else:
            last = i == len(net.blocks) - 1
            _layer(source, "downsample" if last else f"conv2d.conv{i + 1}", block)
    for n, block in enumerate(net.dense, 1):
        dense = cast("DenseBlock", block)
        parts = {"x": dense.lead, "t": dense.level, "all": dense.mix, "short": dense.short}
        for name, layer in parts.items():
            _layer(source, f"linear{n}_{name}.1", layer)
    _layer(source, "out.1", net.out)


def _described(path: Path, data: Any, groups: int) -> tuple[bool, int]:
    """Whether the nets are residual, and their width."""
    found = sorted(map(str, data)) if isinstance(data, dict) else [type(data).__name__]
    nets = [key for key in found if key.startswith("netE")]
    if sorted(nets) != sorted(f"netE{i}" for i in range(groups)):
        raise UserInputError(
            f"{path} holds {short(nets or found)}; energies of the authors' release for this NVAE "
            f"have netE0 to netE{groups - 1}, one per group"
        )
    odd = [f"{key}: {type(data[key]).__name__}" for key in nets if not isinstance(data[key], dict)]
    if odd:
        raise UserInputError(f"{path} holds {short(odd)}; each net has a dictionary of tensors")
    known = data["netE0"]
    residual = any(str(key).startswith("conv_start.") for key in known)
    last = "conv_start" if residual else "downsample"
    kernel = known.get(f"{last}.weight_orig", known.get(f"{last}.weight"))
    if not isinstance(kernel, Tensor) or kernel.ndim != 4:
        raise UserInputError(
            f"{path}: netE0 holds {short(sorted(map(str, known)))}; supported are the release's "
            "residual nets (conv_start, res_blocks) and plain ones (conv2d, downsample)"
        )
    return residual, len(kernel)


def _check_room(path: Path, config: PriorConfig, generator: NvaeConfig, data: Any) -> None:
    residual = config.network == "release_residual"
    for i, shape in enumerate(generator.latent_shapes):
        with torch.device("meta"):
            net = ReleaseNet(shape, config.width, residual)
        try:
            check_room((net,), data[f"netE{i}"])
        except UserInputError as error:
            raise UserInputError(f"netE{i} of {path}: {error}") from error


@usual_defaults()
def load_energies(
    path: str | Path, generator: NvaeConfig
) -> tuple[PriorConfig, LangevinConfig, JointEnergy]:
    """Energies for a generator, with the prior's description and the sampler they were made for.

    Raises:
        UserInputError: The file holds other nets than the generator's groups need, is broken,
            holds what could run code, or its keys and shapes do not fit.
    """
    data = unpickle(Path(path))
    residual, width = _described(Path(path), data, len(generator.latent_shapes))
    s_0, chain_steps = STEPS[residual]
    config = PriorConfig(
        levels=release_levels(LEVELS),
        width=width,
        parametrization="release",
        step_size_0=s_0,
        network="release_residual" if residual else "release_plain",
    )
    sampling = LangevinConfig(
        sampler="recovery",
        steps=LEVELS * chain_steps,
        kernel="plain",
        start="u_next",
        step_scale=1.0,
        denoise=False,
    )
    _check_room(Path(path), config, generator, data)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        prior = JointEnergy(config, generator.latent_shapes, generator.state_shapes)
        for i, net in enumerate(prior.nets):
            source = Source(data[f"netE{i}"], f"netE{i} of {path}")
            _fill(source, cast("ReleaseNet", net))
            source.finish(energies=net)
    return config, sampling, prior
