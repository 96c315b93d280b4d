"""Every kind of cell that NVAE has computes, with its norms folded in, what its layers do.

NVAE's own numbers in `tests/nvae` are of three kinds in one arrangement. Without these tests the
others could fold a norm into the wrong neighbour, or double their maps at another place.
"""

from dataclasses import fields
from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from hebm_sample.config.nvae import CellKind, NvaeCells, NvaeConfig
from hebm_sample.errors import UserInputError
from hebm_sample.generator.nvae.cells import Cell, cell_width
from hebm_sample.generator.nvae.encoder import NvaeEncoder
from hebm_sample.generator.nvae.hierarchy import NvaeGenerator
from hebm_sample.training.imports.nvae_weights import Source, fill_cell

WIDTH = 16  # four to each of eight groups of an expansion by three, and a quarter for the corners
KINDS = get_args(CellKind)
ACTIVATIONS = {"res_elu": F.elu, "res_bnelu": F.elu}


def bottleneck(kind):
    """Expansion, side and groups of the inner convolution that a name tells."""
    expansion, _, rest = kind.removeprefix("mconv_e").partition("k")
    side, _, groups = rest.partition("g")
    return int(expansion), int(side), int(groups) or WIDTH * int(expansion)


class Weights(dict):
    """Random tensors by the names that NVAE gives them."""

    def __init__(self):
        super().__init__()
        self.stream = torch.Generator().manual_seed(0)

    def add(self, key, *shape, low=-1.0, high=1.0):
        value = torch.rand(shape, generator=self.stream, dtype=torch.float64)
        self[key] = low + (high - low) * value

    def norm(self, key, width):
        for name in ("weight", "bias", "running_mean"):
            self.add(f"{key}.{name}", width)
        self.add(f"{key}.running_var", width, low=0.2, high=2.0)

    def conv(self, key, *shape, bias=True):
        self.add(f"{key}.weight", *shape)
        self.add(f"{key}.log_weight_norm", shape[0], 1, 1, 1)
        if bias:
            self.add(f"{key}.bias", shape[0])

    def normed(self, key, x):
        """Batch norm of evaluation."""
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self[f"{key}.{name}"] for name in names), eps=1e-5)

    def kernel(self, key):
        weight = self[f"{key}.weight"]
        norm = weight.flatten(1).norm(dim=1)[:, None, None, None]
        return self[f"{key}.log_weight_norm"].exp() * weight / (norm + 1e-5)


def weights_of(kind, stride, gated):
    """The tensors of one cell of one operation."""
    w, outputs = Weights(), cell_width(WIDTH, stride)
    if stride == 2:
        for i in range(4):
            w.conv(f"c.skip.conv_{i + 1}", outputs // 4, WIDTH, 1, 1)
    elif stride == -1:
        w.conv("c.skip.1", outputs, WIDTH, 1, 1, bias=False)
    if gated:
        for i, shape in ((0, (4, outputs)), (2, (outputs, 4))):
            w.add(f"c.se.se.{i}.weight", *shape)
            w.add(f"c.se.se.{i}.bias", shape[0])
    if kind.startswith("res"):
        w.conv("c._ops.0.conv_0", outputs, WIDTH, 3, 3)
        if kind != "res_elu":
            w.norm("c._ops.0.bn.bn" if kind == "res_bnelu" else "c._ops.0.bn_act", WIDTH)
        return w
    expansion, side, groups = bottleneck(kind)
    hidden, at = WIDTH * expansion, [f"c._ops.0.conv.{i + (stride == -1)}" for i in range(5)]
    w.norm(f"{at[0]}.bn", WIDTH)
    w.add(f"{at[1]}.conv.0.weight", hidden, WIDTH, 1, 1)
    w.norm(f"{at[1]}.conv.1", hidden)
    w.add(f"{at[2]}.conv.0.weight", hidden, hidden // groups, side, side)
    w.norm(f"{at[2]}.conv.1", hidden)
    w.add(f"{at[3]}.weight", outputs, hidden, 1, 1)
    w.norm(f"{at[4]}.bn", outputs)
    return w


def branch(w, kind, stride, x):
    """What a cell's operation does, one layer after another."""
    step = abs(stride)
    if kind.startswith("res"):
        key, far = "c._ops.0", 2 if kind == "res_bnswish5" else 1
        if kind != "res_elu":
            x = w.normed(f"{key}.bn.bn" if kind == "res_bnelu" else f"{key}.bn_act", x)
        x = ACTIVATIONS.get(kind, F.silu)(x)
        x = F.interpolate(x, scale_factor=2) if stride == -1 else x
        kernel, bias = w.kernel(f"{key}.conv_0"), w[f"{key}.conv_0.bias"]
        return F.conv2d(x, kernel, bias, step, padding=far, dilation=far)
    _, side, groups = bottleneck(kind)
    x = F.interpolate(x, scale_factor=2) if stride == -1 else x
    at = [f"c._ops.0.conv.{i + (stride == -1)}" for i in range(5)]
    x = F.conv2d(w.normed(f"{at[0]}.bn", x), w[f"{at[1]}.conv.0.weight"])
    x = F.silu(w.normed(f"{at[1]}.conv.1", x))
    x = F.conv2d(x, w[f"{at[2]}.conv.0.weight"], None, step, (side - 1) // 2, 1, groups)
    x = F.silu(w.normed(f"{at[2]}.conv.1", x))
    return w.normed(f"{at[4]}.bn", F.conv2d(x, w[f"{at[3]}.weight"]))


@pytest.mark.parametrize("gated", (False, True))
@pytest.mark.parametrize("stride", (1, 2, -1))
@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_with_its_norms_folded_in_is_its_layers(kind, stride, gated):
    w = weights_of(kind, stride, gated)
    cell = Cell(WIDTH, stride, (kind,), gated).double()
    with torch.no_grad():
        source = Source(w, "x.pt")
        fill_cell(source, "c", cell)
        source.finish(cell=cell)
        x = torch.rand(2, WIDTH, 6, 6, generator=w.stream, dtype=torch.float64)
        wanted = cell.skip(x) + 0.1 * cell.gate(branch(w, kind, stride, x))
        found, skip = cell(x), cell.skip(x)
    side = {1: 6, 2: 3, -1: 12}[stride]
    assert found.shape == (2, cell_width(WIDTH, stride), side, side)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert float((found - skip).abs().max()) > 1e-2


@pytest.mark.parametrize("role", [field.name for field in fields(NvaeCells)])
@pytest.mark.parametrize("place", (0, 1))
def test_a_description_is_refused_just_where_no_network_can_be_built(monkeypatch, role, place):
    """Eight groups divide the channels of some cells and not of others."""
    names = ["res_elu", "res_elu"]
    names[place] = "mconv_e3k5g8"
    every = {field.name: ("res_elu",) for field in fields(NvaeCells)}
    cells, outcomes = NvaeCells(**every | {role: tuple(names)}), set()
    check = NvaeConfig._check_convolution_groups
    monkeypatch.setattr(NvaeConfig, "_check_convolution_groups", lambda _: None)
    for width in (3, 4, 8):
        for groups, count in (((2,), 1), ((1, 1), 2)):
            config = NvaeConfig(16, groups, 2, width, width, cells, 1, count, count)
            fits = not _raises(UserInputError, check, config)
            with torch.device("meta"):
                network = NvaeEncoder if role.endswith(("pre", "enc")) else NvaeGenerator
                assert fits == (not _raises(ValueError, network, config))
            outcomes.add(fits)
    assert outcomes == {True, False}


def _raises(error, call, config):
    try:
        call(config)
    except error:
        return True
    return False
