"""How many images fit at a time: `--batch auto`.

    batch = free memory / 2 / (2 * bytes that one image's gradient keeps)

What the gradient of F keeps is counted, for two images and for one, so that weights cancel; it
holds again as much in passing, and half of the memory is left to others. More than `MOST` images
at a time gain nothing.
"""

import copy
import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from hebm_sample.config import ModelConfig
from hebm_sample.errors import EnvironmentFailure
from hebm_sample.generator.protocol import Generator
from hebm_sample.io.memory import free_memory
from hebm_sample.latents import Latents, Shapes
from hebm_sample.prior.joint import JointEnergy

if TYPE_CHECKING:
    from hebm_sample.pipeline.model import Model
    from hebm_sample.pipeline.request import Likelihood

__all__ = ["MOST", "bytes_per_image", "check_memory", "fitting_batch", "free_bytes"]

MOST = {"cpu": 64, "cuda": 1024}
COPIES = 1000  # more of its latents and states than a gradient keeps: fewer need no closer look

_M = TypeVar("_M", bound=nn.Module)
Terms = Callable[[Latents, Tensor], Tensor]


def bytes_per_image(model: "Model", likelihood: "Likelihood | None" = None) -> int:
    """Bytes that the gradient of F keeps for each image, and that of a likelihood of one image."""

    def terms(u: Latents, level: Tensor) -> Tensor:
        found = model.energy_terms(u, level)
        if likelihood is None:
            return found
        measured = likelihood.repeated(len(level))(u, level)
        return torch.cat([found, measured[:, None]], dim=1)

    return _kept_per_image(terms, model.generator.latent_shapes, model.device)


def _kept_per_image(terms: Terms, shapes: Shapes, device: torch.device) -> int:
    where: dict[str, Any] = {"device": device, "dtype": torch.float32}

    def kept(batch: int) -> int:
        stores: dict[int, int] = {}
        held: list[Tensor] = []  # so that no address is given out twice

        def note(x: Tensor) -> Tensor:
            stores[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
            held.append(x)
            return x

        u = tuple(torch.zeros(batch, *s, **where, requires_grad=True) for s in shapes)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            found = terms(u, torch.zeros(batch, **where))
        return sum(stores.values()) if found.requires_grad else 0

    with torch.inference_mode(False), torch.enable_grad():
        return max(1, kept(2) - kept(1))


def check_memory(
    config: ModelConfig,
    generator: Generator,
    prior: JointEnergy | None,
    device: torch.device,
) -> None:
    """Raise `EnvironmentFailure` where there is not the memory for a single image of a model: a
    small file can describe maps of any size, and systems end whoever takes more than there is.

    What a gradient of F keeps is counted on shapes alone, for models where that could be much.
    """
    shapes = generator.latent_shapes
    numbers = sum(math.prod(s) for s in (*shapes, *config.generator.state_shapes))
    free, least = free_bytes(device), 4 * numbers
    if COPIES * least > free and prior is not None:
        with suppress(RuntimeError, NotImplementedError):  # what shapes alone cannot tell
            maps, energy = _on_meta(generator), _on_meta(prior)
            least += _kept_per_image(
                lambda u, level: energy(maps.transform(u), level), shapes, torch.device("meta")
            )
    if least > free:
        raise EnvironmentFailure(
            f"one image of {config.name} takes {least / 2**30:.1f} GiB of memory at least, and "
            f"{free / 2**30:.1f} GiB are free: it has {config.generator.latent_dimensions:,} "
            "latent dimensions; take a machine with more, or a smaller model"
        )


@torch.inference_mode(False)
def _on_meta(module: _M) -> _M:
    """A copy with the shapes of parameters and buffers, and nothing in them."""
    memo: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=False)
    return copy.deepcopy(module, memo)


def free_bytes(device: torch.device) -> int:
    """Memory that is free, as the device or the system says; in a container, what it may have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()


def fitting_batch(model: "Model", particles: int = 1) -> int:
    """The largest sensible batch, 1 or more, of images of so many particles each."""
    most = MOST.get(model.device.type, MOST["cpu"])
    if model.prior is None:
        return most
    each = 2 * particles * bytes_per_image(model)
    return max(1, min(most, free_bytes(model.device) // 2 // each))
