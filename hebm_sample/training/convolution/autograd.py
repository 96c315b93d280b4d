r"""2-d convolutions that can be differentiated twice at the least cost.

    y = conv(x, w)      x' = conv^T(y', w)      w' = grad(x, y')

Each of the three is linear in both of its arguments, and the derivatives of each are the other
two, so that they are closed under differentiation; and none is computed that nobody asks for.
PyTorch's own second derivative computes the gradient of frozen weights too, and that of all
weights by a convolution whose batch and channels have changed places, at half of the speed.
Score matching differentiates twice (`training/energy.py`), and so does a penalty on a slope.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hebm_sample.training.convolution import winograd

__all__ = ["TrainingConvolutions", "conv2d", "no_weight_gradients"]

_thread = threading.local()


@contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Gradients that this thread computes inside are not asked for weights and biases: a function
    of autograd cannot see that for itself.
    """
    before = getattr(_thread, "inputs_alone", False)
    _thread.inputs_alone = True
    try:
        yield
    finally:
        _thread.inputs_alone = before


class Geometry(NamedTuple):
    """Stride and padding of a convolution, in rows and in columns."""

    stride: tuple[int, int]
    padding: tuple[int, int]

    def transformed(self, maps: torch.Size, weight: torch.Size) -> bool:
        """Whether maps (B, C, H, W) are best convolved by Winograd's algorithm."""
        return self == ((1, 1), (1, 1)) and winograd.pays(maps, weight)


class Layer:
    """One convolution with the weight that it has in a step, which its derivatives use again."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.kernels: dict[bool, Tensor] = {}

    def kernel(self, weight: Tensor, *, turned: bool) -> Tensor:
        """The weight (K, C, 3, 3), or the one of its transpose, transformed; made once."""
        if turned not in self.kernels:
            own = weight.flip(2, 3).transpose(0, 1) if turned else weight
            self.kernels[turned] = winograd.transformed_kernel(own)
        return self.kernels[turned]


def _like(maps: Tensor, shape: torch.Size) -> Tensor:
    """A tensor in the maps' memory layout, to be read for its shape and layout alone."""
    last = maps.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=layout)


def _plain_gradients(
    slope: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, which: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(slope * conv(x, weight)) by x and by the weight, those that `which`
    names.
    """
    stride, padding = geometry
    which = [*which, False]
    found = torch.ops.aten.convolution_backward(
        slope, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, which
    )
    return found[0], found[1]


class _Convolution(Function):
    """(x, weight, bias or None, layer, windows of x if they are known) to y."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layer: Layer,
        windows: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.windows = layer, None
        if not layer.geometry.transformed(x.shape, weight.shape):
            return F.conv2d(x, weight, bias, *layer.geometry)
        windows = winograd.transformed_windows(x) if windows is None else windows
        ctx.windows = windows if ctx.needs_input_grad[1] else None
        return winograd.convolve(windows, layer.kernel(weight, turned=False), x.shape, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = grad_outputs
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad[:3]
        if getattr(_thread, "inputs_alone", False):
            by_weight = by_bias = False
        layer, shape = ctx.layer, weight.shape
        return (
            _InputGradient.apply(slope, weight, x.shape, layer) if by_x else None,
            _WeightGradient.apply(x, slope, shape, layer, ctx.windows) if by_weight else None,
            slope.sum((0, 2, 3)) if by_bias else None,
            None,
            None,
        )


class _InputGradient(Function):
    """(slope, weight, shape of x, layer) to the gradient of sum(slope * conv(x, weight)) by x."""

    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, weight: Tensor, shape: torch.Size, layer: Layer
    ) -> Tensor:
        ctx.save_for_backward(slope, weight)
        ctx.layer = layer
        if layer.geometry.transformed(slope.shape, weight.shape):
            windows = winograd.transformed_windows(slope)
            return winograd.convolve(windows, layer.kernel(weight, turned=True), slope.shape, None)
        x = _like(slope, shape)
        return _plain_gradients(slope, x, weight, layer.geometry, [True, False])[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (along,) = grad_outputs
        slope, weight = ctx.saved_tensors
        layer, shape = ctx.layer, weight.shape
        by_slope, by_weight = ctx.needs_input_grad[:2]
        windows = None
        if layer.geometry.transformed(along.shape, shape):
            windows = winograd.transformed_windows(along.detach())
        return (
            _Convolution.apply(along, weight, None, layer, windows) if by_slope else None,
            _WeightGradient.apply(along, slope, shape, layer, windows) if by_weight else None,
            None,
            None,
        )


class _WeightGradient(Function):
    """(x, slope, shape of the weight, layer, windows of x if they are known) to the gradient of
    sum(slope * conv(x, weight)) by the weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        slope: Tensor,
        shape: torch.Size,
        layer: Layer,
        windows: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, slope)
        ctx.layer = layer
        if layer.geometry.transformed(x.shape, shape):
            windows = winograd.transformed_windows(x) if windows is None else windows
            return winograd.weight_gradient(windows, slope)
        weight = _like(x, shape)
        return _plain_gradients(slope, x, weight, layer.geometry, [False, True])[1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (along,) = grad_outputs
        x, slope = ctx.saved_tensors
        layer = Layer(ctx.layer.geometry)  # `along` takes the weight's place
        by_x, by_slope = ctx.needs_input_grad[:2]
        return (
            _InputGradient.apply(slope, along, x.shape, layer) if by_x else None,
            _Convolution.apply(x, along, None, layer, None) if by_slope else None,
            None,
            None,
            None,
        )


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """As `torch.nn.functional.conv2d`, up to rounding; what is not a plain convolution of a batch
    is left to it.
    """
    plain = isinstance(padding, str) or _pair(dilation) != (1, 1) or groups != 1
    if plain or x.device.type != "cpu" or x.ndim != 4:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)  # pyright: ignore
    assert not isinstance(padding, str)
    layer = Layer(Geometry(_pair(stride), _pair(padding)))
    found = _Convolution.apply(x, weight, bias, layer, None)
    assert isinstance(found, Tensor)
    return found


class _Silu(Function):
    """x to y = x s(x), with s the logistic function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor | None:
        found = _SiluGradient.apply(grad_outputs[0], *ctx.saved_tensors)
        assert isinstance(found, Tensor)
        return found


class _SiluGradient(Function):
    """(slope, x) to slope y'(x), y' = s (1 + x (1 - s))."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(slope, x)
        return torch.ops.aten.silu_backward(slope, x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (along,) = grad_outputs
        slope, x = ctx.saved_tensors
        by_slope, by_x = ctx.needs_input_grad
        found = None
        if by_x:  # y'' = s (1 - s) (2 + x (1 - 2 s)), and x s is y
            bend = torch.sub(x, F.silu(x), alpha=2).add_(2)
            found = torch.ops.aten.sigmoid_backward(along * slope, x.sigmoid()).mul_(bend)
        return torch.ops.aten.silu_backward(along, x) if by_slope else None, found


def silu(x: Tensor, inplace: bool = False) -> Tensor:
    """As `torch.nn.functional.silu`, whose second derivative takes 9 passes over memory in place
    of about 20.
    """
    if inplace or not x.requires_grad:
        return F.silu(x, inplace)
    found = _Silu.apply(x)
    assert isinstance(found, Tensor)
    return found


class TrainingConvolutions(TorchFunctionMode):
    """A context in which `torch.nn.functional.conv2d`, and so every `Conv2d`, is `conv2d`, and
    `silu` is `silu`, in this thread.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls what was called, or `conv2d` in its place."""
        return OURS.get(func, func)(*args, **(kwargs or {}))


OURS: dict[Any, Callable[..., Any]] = {torch.conv2d: conv2d, F.silu: silu}
