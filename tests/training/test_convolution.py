"""Convolutions of training: what `torch.nn.functional.conv2d` gives, differentiated once, twice,
and no gradient that nobody asks for.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.convolution import autograd, winograd
from hebm_sample.training.convolution.autograd import (
    TrainingConvolutions,
    conv2d,
    no_weight_gradients,
    silu,
)
from hebm_sample.training.devices import computing
from tests.training.test_division import CPU, gradients, objective, whole

# (channels, outputs, kernel, stride, padding, side)
SHAPES = [
    (2, 3, 3, 1, 1, 8),  # by Winograd's algorithm
    (3, 2, 3, 1, 1, 4),
    (2, 3, 3, 1, 1, 5),  # no multiple of 4
    (2, 2, 3, 1, 0, 4),
    (2, 2, 1, 1, 0, 4),
    (2, 3, 2, 2, 0, 4),
    (2, 3, 4, 2, 1, 4),
]


@pytest.fixture(autouse=True)
def few_channels(monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 2)


def drawn(channels, outputs, kernel, side, batch=2):
    stream = torch.Generator().manual_seed(3)

    def of(*shape):
        return torch.randn(shape, generator=stream, dtype=torch.float64).requires_grad_()

    return (
        of(batch, channels, side, side),
        of(outputs, channels, kernel, kernel),
        of(outputs),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_are_those_of_torch(shape, layout):
    channels, outputs, kernel, stride, padding, side = shape
    x, weight, bias = drawn(channels, outputs, kernel, side)
    x = x.detach().contiguous(memory_format=layout)
    for b in (bias, None):
        found = conv2d(x, weight, b, stride, padding)
        torch.testing.assert_close(found, F.conv2d(x, weight, b, stride, padding))


@pytest.mark.parametrize("shape", SHAPES)
def test_first_and_second_derivatives_are_right(shape):
    channels, outputs, kernel, stride, padding, side = shape
    given = drawn(channels, outputs, kernel, side, batch=1)

    def function(x, weight, bias):
        return conv2d(x, weight, bias, stride, padding)

    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)


def test_rounding_in_float32_is_small_beside_the_values():
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(4, 128, 8, 8, generator=stream)
    weight = torch.randn(128, 128, 3, 3, generator=stream)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    away = conv2d(x, weight, padding=1).double() - exact
    assert float(away.norm() / exact.norm()) < 1e-5


def test_silu_and_its_two_derivatives_are_right():
    x = 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.cat([x.flatten(), torch.tensor([0.0, -30.0, 30.0])]).double().requires_grad_()
    assert torch.equal(silu(x), F.silu(x))
    assert torch.autograd.gradcheck(silu, x)
    assert torch.autograd.gradgradcheck(silu, x)
    assert torch.equal(silu(x.detach().clone(), inplace=True), F.silu(x))


def test_a_third_derivative_of_silu_is_right():
    x = torch.randn(6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def slope(x):
        return torch.autograd.grad(silu(x).sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, x.requires_grad_())


def test_silu_inside_the_context_is_ours_and_outside_torchs():
    x = torch.randn(3, requires_grad=True)
    with TrainingConvolutions():
        inside = nn.SiLU()(x).grad_fn, F.silu(x).grad_fn
    assert all("_Silu" in type(f).__name__ for f in inside)
    assert "_Silu" not in type(F.silu(x).grad_fn).__name__


def test_every_convolution_inside_the_context_is_ours_and_none_outside():
    layer, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 4, 4)
    with TrainingConvolutions():
        inside = layer(x).grad_fn
    assert "_Convolution" in type(inside).__name__
    assert "_Convolution" not in type(layer(x).grad_fn).__name__


@pytest.mark.parametrize(
    "options", [{"groups": 2}, {"dilation": 2}, {"padding": "same"}, {"stride": 2, "dilation": 2}]
)
def test_other_convolutions_are_left_to_torch(options):
    x = torch.randn(2, 4, 8, 8)
    weight = torch.randn(4, 4 // options.get("groups", 1), 3, 3)
    with TrainingConvolutions():
        found = F.conv2d(x, weight, **options)
    assert torch.equal(found, F.conv2d(x, weight, **options))


@pytest.fixture
def counted(monkeypatch):
    """Shapes of the weights whose gradient was computed."""
    found = []
    real = autograd._WeightGradient.forward

    def forward(ctx, x, slope, shape, layer, windows):
        found.append(tuple(shape))
        return real(ctx, x, slope, shape, layer, windows)

    monkeypatch.setattr(autograd._WeightGradient, "forward", staticmethod(forward))
    return found


def test_no_gradient_of_a_frozen_weight_is_computed(counted):
    x, weight, _ = drawn(2, 3, 3, 8)
    frozen = weight.detach()
    y = conv2d(x, frozen, padding=1)
    (slope,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    torch.autograd.grad(slope.square().sum(), x)
    assert counted == []


def test_weights_are_left_out_where_the_gradient_is_of_inputs_alone(counted):
    x, weight, _ = drawn(2, 3, 3, 8)
    y = conv2d(x, weight, padding=1)
    with no_weight_gradients():
        (slope,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    assert counted == []
    (found,) = torch.autograd.grad(slope.square().sum(), weight)
    assert len(counted) == 2  # through the slope, and through y
    y = F.conv2d(x, weight, padding=1)
    (slope,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (wanted,) = torch.autograd.grad(slope.square().sum(), weight)
    torch.testing.assert_close(found, wanted)


def test_score_matching_learns_the_same_with_them(counted):
    settings = TrainSettings(steps=1)
    built = objective("score")
    found, stats = gradients(built, [whole()], context=computing(built, settings, CPU))
    assert counted
    other = objective("score")
    wanted, plain = gradients(other, [whole()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(stats["loss"], plain["loss"], rtol=1e-5, atol=1e-6)


def test_only_what_is_differentiated_twice_in_float32_on_a_cpu_has_them():
    plain, score = TrainSettings(steps=1), objective("score")
    assert computing(score, plain, CPU) is TrainingConvolutions
    again = TrainSettings(steps=1, activation_checkpointing=True)
    for case in (
        computing(objective("generator"), plain, CPU),
        computing(score, again, CPU),
        computing(score, plain, torch.device("cuda")),
        computing(score, TrainSettings(steps=1, dtype="bfloat16"), CPU),
        computing(score, TrainSettings(steps=1, compile=True), CPU),
    ):
        assert case is not TrainingConvolutions
