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

from hebm_sample.config import LangevinConfig, ModelConfig, NvaeConfig, PriorConfig
from hebm_sample.errors import UserInputError
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.files import short
from hebm_sample.prior.joint import JointEnergy
from hebm_sample.prior.release_network import DenseBlock, HalvingBlock, ReleaseNet
from hebm_sample.prior.schedule import release_levels
from hebm_sample.training.imports.nvae_weights import AS_WRITTEN, Source, check_room
from hebm_sample.training.imports.pickles import named, unpickle

__all__ = ["load_energies"]

LEVELS = 3
LEAST_SHARE = 1e-3  # of |W| that a spectral norm has: more than 1 / sqrt(rank) of any layer
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
        weight = weight / _spectral_norm(source, key, left, matrix, right)
    conv.weight.data = weight.to(conv.weight.dtype)


def _spectral_norm(source: Source, key: str, left: Tensor, matrix: Tensor, right: Tensor) -> float:
    """u^T W v of unit vectors. The largest singular value lies between |W| / sqrt(rank) and |W|,
    and power iteration has come near it; half precision moves it by less than a hundredth.
    """
    sigma, norm = float(left @ matrix @ right), float(matrix.norm())
    complete = not source.missing and not source.misshapen  # else `finish` tells that
    if complete and not (0.0 < sigma and LEAST_SHARE * norm <= sigma <= 1.01 * norm):
        raise UserInputError(
            f"{source.name}: the spectral norm u^T W v of {short(key)} is {sigma:.3g}, and |W| is "
            f"{norm:.3g}; {AS_WRITTEN}"
        )
    return sigma if complete else 1.0


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
    found = sorted(map(named, data)) if isinstance(data, dict) else [type(data).__name__]
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
    residual = any(named(key).startswith("conv_start.") for key in known)
    last = "conv_start" if residual else "downsample"
    kernel = known.get(f"{last}.weight_orig", known.get(f"{last}.weight"))
    if not isinstance(kernel, Tensor) or kernel.is_nested or kernel.ndim != 4:
        raise UserInputError(
            f"{path}: netE0 holds {short(sorted(map(named, known)))}; supported are the release's "
            "residual nets (conv_start, res_blocks) and plain ones (conv2d, downsample)"
        )
    return residual, len(kernel)


def _prior_config(path: Path, generator: NvaeConfig, width: int, residual: bool) -> PriorConfig:
    try:
        config = PriorConfig(
            levels=release_levels(LEVELS),
            width=width,
            parametrization="release",
            step_size_0=STEPS[residual][0],
            network="release_residual" if residual else "release_plain",
        )
        ModelConfig("nvae", generator, config)  # nets fit some resolutions only
    except UserInputError as error:
        raise UserInputError(f"{path}: {error}") from error
    return config


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
    config = _prior_config(Path(path), generator, width, residual)
    sampling = LangevinConfig(
        sampler="recovery",
        steps=LEVELS * STEPS[residual][1],
        kernel="plain",
        start="u_next",
        step_scale=1.0,
        denoise=False,
    )
    _check_room(Path(path), config, generator, data)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        prior = JointEnergy(config, generator.latent_shapes, generator.state_shapes)
        for i, net in enumerate(prior.nets):
            source = Source(data[f"netE{i}"], f"netE{i} of {path}", "the net of its group")
            _fill(source, cast("ReleaseNet", net))
            source.finish(energies=net)
    return config, sampling, prior
