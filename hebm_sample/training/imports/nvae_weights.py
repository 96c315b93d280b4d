"""From NVAE's state dictionary to our modules, with its normalisations folded away.

    weight norm   w = exp(g) v / (|v| + 1e-5)                        |v| of each output channel
    batch norm    scale = gamma / sqrt(var + 1e-5), shift = beta - mean scale
    shifts        v is masked first

All of it in float64. Every key is asked for by name and shape; what is missing, has another shape
or was never asked for is an error.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from hebm_sample.config import NvaeConfig
from hebm_sample.errors import UserInputError
from hebm_sample.generator.nvae.cells import (
    ActivatedConv,
    Cell,
    CornerSkip,
    InvertedBottleneck,
    Norm,
    SqueezeExcitation,
    UpsampleSkip,
)
from hebm_sample.generator.nvae.encoder import NvaeEncoder, PosteriorHead, Shift
from hebm_sample.generator.nvae.hierarchy import NvaeGenerator, NvaeGroup
from hebm_sample.io.files import short
from hebm_sample.training.imports.pickles import named

__all__ = ["Source", "causal_mask", "check_room", "fill", "fill_cell"]

EPSILON = 1e-5  # of both normalisations
SHOWN = 3
AS_WRITTEN = "give a checkpoint as its training wrote it"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.int32, torch.int64)


class Source:
    """NVAE's tensors, and which of them were used.

    Arguments:
        tensors: The state dictionary.
        name: Of the file, for errors: `UserInputError` for what is no plain tensor of finite
            floats.
        described: What says which keys and shapes there are, for errors.
    """

    def __init__(
        self, tensors: Mapping[str, Any], name: str, described: str = "its own arguments"
    ) -> None:
        self.tensors, self.name, self.described = tensors, name, described
        self.used = set[str]()
        self.missing: list[str] = []
        self.misshapen: list[str] = []

    def take(self, key: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor in float64; zeros where it is missing or has another shape, which `finish`
        tells.
        """
        self.used.add(key)
        value = self.tensors.get(key)
        if value is None:
            self.missing.append(key)
            return torch.zeros(shape, dtype=torch.float64)
        self._check_plain(key, value)
        if tuple(value.shape) != shape:
            self.misshapen.append(f"{key} is {tuple(value.shape)} and not {shape}")
            return torch.zeros(shape, dtype=torch.float64)
        return value.detach().double()

    def pass_over(self, key: str, shape: tuple[int, ...]) -> None:
        """A key that may be there and says nothing new."""
        if key in self.tensors:
            self.take(key, shape)

    def _pass_over_count(self, key: str) -> None:
        """A whole number that only training needs, and files without momentum lack."""
        self.used.add(key)
        value = self.tensors.get(key)
        if value is None or (_numbers(value) == 1 and value.dtype in (*WHOLE, *FLOATS)):
            return
        raise UserInputError(
            f"{self.name}: {short(key)} is {_told(value)}, and no single number; {AS_WRITTEN}"
        )

    def batch_norm(self, prefix: str, width: int) -> tuple[Tensor, Tensor]:
        """Scale and shift, (C,) each."""
        names = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (self.take(f"{prefix}.{n}", (width,)) for n in names)
        self._pass_over_count(f"{prefix}.num_batches_tracked")
        scale = gamma / (variance + EPSILON).sqrt()
        return scale, beta - mean * scale

    def kernel(self, prefix: str, conv: nn.Conv2d, mask: Tensor | None = None) -> Tensor:
        """A weight-normalised kernel, shaped as `conv`'s."""
        weight = self.take(f"{prefix}.weight", tuple(conv.weight.shape))
        log_norm = self.take(f"{prefix}.log_weight_norm", (len(weight), 1, 1, 1))
        weight = weight if mask is None else weight * mask
        norm = weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        return log_norm.exp() * weight / (norm + EPSILON)

    def convolution(self, prefix: str, conv: nn.Conv2d, mask: Tensor | None = None) -> None:
        """Fill a weight-normalised convolution."""
        _set(conv.weight, self.kernel(prefix, conv, mask))
        if conv.bias is not None:
            _set(conv.bias, self.take(f"{prefix}.bias", tuple(conv.bias.shape)))

    def plain_kernel(self, prefix: str, conv: nn.Conv2d) -> Tensor:
        """A kernel without weight norm, which has its own second copy in the file."""
        self.pass_over(f"{prefix}.weight_normalized", tuple(conv.weight.shape))
        return self.take(f"{prefix}.weight", tuple(conv.weight.shape))

    def _check_plain(self, key: str, value: Any) -> None:
        fits = _numbers(value) and value.dtype in FLOATS
        if fits and bool(torch.isfinite(value).all()):
            return
        raise UserInputError(
            f"{self.name}: {short(key)} is {'not finite' if fits else _told(value)}; weights are "
            f"finite tensors of float16, bfloat16, float32 or float64; {AS_WRITTEN}"
        )

    def finish(self, **networks: nn.Module) -> None:
        """Raise `UserInputError` unless every key was there, of its shape, and was used, and the
        networks that were filled are finite.
        """
        extra = sorted(named(k) for k in set(self.tensors) - self.used)
        faults = (("lacks", self.missing), ("also has", extra), ("differs:", self.misshapen))
        told = [f"{verb} {_listed(keys)}" for verb, keys in faults if keys]
        if told:
            raise UserInputError(
                f"{self.name} does not fit {self.described}: it {'; '.join(told)}; {AS_WRITTEN}"
            )
        for part, network in networks.items():
            for key, weight in network.named_parameters():
                if not bool(torch.isfinite(weight).all()):
                    raise UserInputError(
                        f"{self.name}: with its norms folded in, {part}.{key} is not finite in "
                        "float32; the checkpoint is broken"
                    )


def _numbers(value: Any) -> int:
    """How many numbers a plain tensor has; 0 for another, as one that repeats what it holds."""
    if type(value) not in (Tensor, nn.Parameter) or value.is_nested:
        return 0
    if value.layout != torch.strided or value.is_meta:
        return 0
    count = value.numel()
    return count if count * value.element_size() <= value.untyped_storage().nbytes() else 0


def check_room(networks: Iterable[nn.Module], tensors: Mapping[Any, Any]) -> None:
    """Raise `UserInputError` if tensors are far too few for networks, which might take more
    memory than there is before their first key is missed.

    Arguments:
        networks: As described, on the meta device.
        tensors: The state dictionary.
    """
    least = sum(p.numel() for network in networks for p in network.parameters())
    held = sum(_numbers(value) for value in tensors.values())
    if least > 2 * held:  # what two networks share is in the file once
        raise UserInputError(
            f"its networks have {least} weights, and its tensors {held} numbers; {AS_WRITTEN}"
        )


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(short(key)[1:-1] for key in keys[:SHOWN]) + more


def _told(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    if _numbers(value):
        return f"of {str(value.dtype).removeprefix('torch.')}"
    return "empty" if value.numel() == 0 else "not stored number by number"


def _set(parameter: nn.Parameter | Tensor, value: Tensor) -> None:
    parameter.data = value.to(parameter.dtype).contiguous()


# Cells


def _norm(source: Source, prefix: str, norm: Norm) -> None:
    scale, shift = source.batch_norm(prefix, len(norm.scale))
    _set(norm.scale, scale)
    _set(norm.shift, shift)


def _activated(source: Source, prefix: str, op: ActivatedConv) -> None:
    if isinstance(op.norm, Norm):
        name = "bn_act" if op.activation is nn.functional.silu else "bn.bn"
        _norm(source, f"{prefix}.{name}", op.norm)
    source.convolution(f"{prefix}.conv_0", op.conv)


def _bottleneck(source: Source, prefix: str, op: InvertedBottleneck) -> None:
    """Batch norms at both ends and behind both inner convolutions, each into its neighbour."""
    at = [f"{prefix}.conv.{i + int(op.upsamples)}" for i in range(5)]
    width, hidden, outputs = op.expand.in_channels, op.mix.in_channels, op.project.out_channels
    scale, shift = source.batch_norm(f"{at[0]}.bn", width)
    kernel = source.plain_kernel(f"{at[1]}.conv.0", op.expand)
    after, bias = source.batch_norm(f"{at[1]}.conv.1", hidden)
    _set(op.expand.weight, kernel * scale[:, None, None] * after[:, None, None, None])
    _fill_bias(op.expand, (kernel[:, :, 0, 0] @ shift) * after + bias)
    after, bias = source.batch_norm(f"{at[2]}.conv.1", hidden)
    kernel = source.plain_kernel(f"{at[2]}.conv.0", op.mix)
    _set(op.mix.weight, kernel * after[:, None, None, None])
    _fill_bias(op.mix, bias)
    after, bias = source.batch_norm(f"{at[4]}.bn", outputs)
    _set(op.project.weight, source.plain_kernel(at[3], op.project) * after[:, None, None, None])
    _fill_bias(op.project, bias)


def _fill_bias(conv: nn.Conv2d, bias: Tensor) -> None:
    assert conv.bias is not None
    _set(conv.bias, bias)


def _linear(source: Source, prefix: str, layer: nn.Linear) -> None:
    _set(layer.weight, source.take(f"{prefix}.weight", tuple(layer.weight.shape)))
    _set(layer.bias, source.take(f"{prefix}.bias", tuple(layer.bias.shape)))


def fill_cell(source: Source, prefix: str, cell: Cell) -> None:
    """Fill a cell from the keys that begin with a prefix."""
    if isinstance(cell.skip, CornerSkip):
        for i, conv in enumerate(cell.skip.corners):
            source.convolution(f"{prefix}.skip.conv_{i + 1}", cast("nn.Conv2d", conv))
    elif isinstance(cell.skip, UpsampleSkip):
        source.convolution(f"{prefix}.skip.1", cell.skip.project)
    for i, op in enumerate(cell.operations):
        if isinstance(op, ActivatedConv):
            _activated(source, f"{prefix}._ops.{i}", op)
        else:
            _bottleneck(source, f"{prefix}._ops.{i}", cast("InvertedBottleneck", op))
    if isinstance(cell.gate, SqueezeExcitation):
        _linear(source, f"{prefix}.se.se.0", cell.gate.squeeze)
        _linear(source, f"{prefix}.se.se.2", cell.gate.excite)


def _cells(source: Source, prefix: str, cells: nn.Sequential, start: int = 0) -> int:
    """Fill cells that are numbered from `start`; returns the number after them."""
    for i, cell in enumerate(cells, start):
        fill_cell(source, f"{prefix}.{i}", cast("Cell", cell))
    return start + len(cells)


# Posterior


def causal_mask(conv: nn.Conv2d, *, strict: bool, mirrored: bool) -> Tensor:
    """1 where an autoregressive convolution may look: at rows above, at what is left of it in its
    own row, and where it stands at channels of earlier latents.

    Arguments:
        strict: Not at the own latent channel either.
        mirrored: Rows below and right in place of above and left.
    """
    outputs, inputs, side, _ = conv.weight.shape
    middle = side // 2
    mask = torch.zeros(conv.weight.shape, dtype=torch.float64)
    mask[:, :, :middle] = 1
    mask[:, :, middle, :middle] = 1
    latents = min(outputs, inputs)
    sees = torch.arange(inputs) * latents // inputs
    owns = (torch.arange(outputs) * latents // outputs)[:, None]
    if conv.groups > 1:  # depthwise: a channel sees its own one only
        mask[:, :, middle, middle] = 0.0 if strict else 1.0
    else:
        mask[:, :, middle, middle] = (sees < owns if strict else sees <= owns).double()
    return mask.flip(2, 3) if mirrored else mask


def _shift(source: Source, prefix: str, shift: Shift, mirrored: bool) -> None:
    rows = (
        ("conv.convz.0", shift.conv1, True),
        ("conv.convz.2", shift.conv2, False),
        ("mu.conv_0", shift.out, False),
    )
    for name, conv, strict in rows:
        mask = causal_mask(conv, strict=strict, mirrored=mirrored)
        source.convolution(f"{prefix}.{name}", conv, mask)


def _head(source: Source, i: int, head: PosteriorHead, combiner: int) -> None:
    source.convolution(f"enc_sampler.{i}", head.out)
    if head.join is not None:
        source.convolution(f"enc_tower.{combiner}.conv", head.join)
    if head.prior is not None:
        source.convolution(f"dec_sampler.{i - 1}.1", head.prior)
    pairs = len(head.flows) // 2
    for n, shift in enumerate(head.flows):
        prefix = f"nf_cells.{i * pairs + n // 2}.cell{n % 2 + 1}"
        _shift(source, prefix, cast("Shift", shift), mirrored=bool(n % 2))


def _fill_encoder(source: Source, encoder: NvaeEncoder) -> None:
    source.convolution("stem", encoder.stem)
    _cells(source, "pre_process", encoder.preprocess)
    number, last = 0, len(encoder.stages) - 1
    combiners = [0] * (last + 1)
    for i, stage in enumerate(encoder.stages):
        number = _cells(source, "enc_tower", cast("nn.Sequential", stage), number)
        if i < last:  # the number of what joins this stage with the top-down path
            combiners[last - i] = number
            number += 1
    source.convolution("enc0.1", encoder.top)
    for i, head in enumerate(encoder.heads):
        _head(source, i, cast("PosteriorHead", head), combiners[i])


def _fill_generator(source: Source, generator: NvaeGenerator) -> None:
    shape = tuple(generator.constant.shape)
    _set(generator.constant, source.take("prior_ftr0", shape[1:])[None])
    number = 0
    for i, module in enumerate(generator.groups):
        group = cast("NvaeGroup", module)
        if group.prior is not None:
            source.convolution(f"dec_sampler.{i - 1}.1", group.prior)
        assert group.combine is not None
        source.convolution(f"dec_tower.{number}.conv", group.combine)
        number = _cells(source, "dec_tower", group.cells, number + 1)
    _cells(source, "post_process", generator.decoder)
    source.convolution("image_conditional.1", generator.head)


def fill(
    config: NvaeConfig, tensors: Mapping[str, Any], name: str
) -> tuple[NvaeGenerator, NvaeEncoder]:
    """Generator and encoder with NVAE's weights.

    Arguments:
        config: What the checkpoint's arguments describe.
        tensors: Its state dictionary.
        name: Of the file, for errors.

    Raises:
        UserInputError: Keys or shapes differ, or a value is not finite.
    """
    source = Source(tensors, name)
    generator, encoder = NvaeGenerator(config), NvaeEncoder(config)
    _fill_generator(source, generator)
    _fill_encoder(source, encoder)
    source.finish(generator=generator, encoder=encoder)
    return generator, encoder
